"""Copies the device part out of the installed edgekit, so that it runs where nothing is installed.

``PYTHONPATH=FOLDER python -m edgekit.device`` then needs NumPy and a runtime.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path

from edgekit.errors import DISTRIBUTION, OutputError

MODULES = (
    "edgekit",
    "edgekit.errors",
    "edgekit.types",
    "edgekit.registry",
    "edgekit.manifest",
    "edgekit.requirements",
    "edgekit.environment",
    "edgekit.capabilities",
    "edgekit.fidelity",
    "edgekit.preprocess",
    "edgekit.datasets",
    "edgekit.few_shot",
    "edgekit.doctor",
    "edgekit.jetson",
    "edgekit.limits",
    "edgekit.power.*",
    "edgekit.runners.*",
    "edgekit.run.*",
    "edgekit.bench.*",
    "edgekit.device.*",
    "edgekit.exporters",
    "edgekit.exporters._tensorrt_here",
    "edgekit.exporters._tensorrt_builder",
    "edgekit.exporters._tensorrt_worker",
    "edgekit.exporters._tensorrt_layers",
    "edgekit.exporters._worker_process",
)
"""The device part; ``.*`` stands for a package with all that is in it. Closed: a module imports
nothing of edgekit outside of this list, except inside of functions that a device never calls."""


def write_runner(folder: Path) -> tuple[Path, ...]:
    """Copy the device part to ``folder/edgekit``, and the distribution's metadata beside it.

    Args:
        folder: existing folder without an ``edgekit`` in it.

    Returns:
        What was written, sorted; equal installations give equal files.

    Raises:
        OutputError: a file cannot be written.
    """
    written = []
    try:
        for source, inner in _sources():
            target = folder / inner
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            written.append(target)
        written.append(_write_metadata(folder))
    except OSError as error:
        raise OutputError(
            f"the runner cannot be written to '{folder}': {error.strerror or error}",
            "free space there, or choose another place",
        ) from error
    return tuple(sorted(written))


def _sources() -> Iterator[tuple[Path, Path]]:
    """Yield each module's file and its path below the folder of the copy."""
    for entry in MODULES:
        name = entry.removesuffix(".*")
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None, f"'{name}' is part of edgekit"
        origin, inner = Path(spec.origin), Path(*name.split("."))
        if entry != name:
            for file in sorted(origin.parent.rglob("*.py")):
                yield file, inner / file.relative_to(origin.parent)
        elif spec.submodule_search_locations is not None:
            yield origin, inner / "__init__.py"
        else:
            yield origin, inner.with_suffix(".py")


def _write_metadata(folder: Path) -> Path:
    """Write what ``importlib.metadata`` reads: the version, and the bounds of optional packages."""
    distribution = importlib.metadata.distribution(DISTRIBUTION)
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    head, _, _ = text.partition("\n\n")  # without the description, which is the whole README
    name = DISTRIBUTION.replace("-", "_")
    path = folder / f"{name}-{distribution.version}.dist-info" / "METADATA"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + "\n", encoding="utf-8")
    return path
