"""A bundle on its device: are its files whole, and do its artifacts compute what they should?

A bundle is a result directory (``manifest.json``) with samples: inputs, and for each target what
the host's simulation of its file makes of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import LoadError, UnsupportedError, VerificationError
from edgekit.fidelity import agreement_percent, sqnr_db
from edgekit.manifest import Manifest, TargetEntry, read_manifest, verify_files
from edgekit.registry import RUNNERS, resolve
from edgekit.runners.child import WorkerRequest, run_in_child
from edgekit.types import Progress, Task

SAMPLES = "samples"
INPUTS = f"{SAMPLES}/inputs.npz"
MIN_SQNR_DB = 20.0
"""Least SQNR against the simulation: float sums in another order move a code by one here and there,
and deep networks amplify that to 25 to 35 dB."""
MIN_MATCH = 99.0
"""Least agreement of classes and embeddings, percent. The samples of a classifier are those whose
class is the clearest, so that no last bit decides it."""
_TIMEOUT_S = 600.0
_JUDGED = (Task.CLASSIFICATION, Task.EMBEDDING)


def expected_path(target: str) -> str:
    """Return where a bundle keeps what a target is to compute, relative to the bundle."""
    return f"{SAMPLES}/expected_{target}.npz"


def verify_bundle(
    folder: Path, *, run: bool, targets: Sequence[str] | None, progress: Progress
) -> dict[str, Any]:
    """Check the files of a bundle, then what its artifacts compute here.

    Args:
        folder: the bundle.
        run: run the artifacts, too; else only the files are checked.
        targets: those to run, which then must run; every one that can if ``None``.
        progress: called before each step.

    Returns:
        ``files`` (number checked), and in ``targets`` for each target whether it ``ran``, its
        ``sqnr_db`` (``null`` where identical) and ``match`` against the simulation, its
        ``layers`` by precision, the ``versions`` of its runtime, or the ``reason`` why not.

    Raises:
        LoadError: a file is missing or changed.
        VerificationError: an artifact computes something else, or none could be run.
        EdgekitError: a target that ``targets`` names, or an engine that was built, cannot be run.
    """
    manifest = read_manifest(folder)
    progress("verify files", 0.0)
    verify_files(folder, manifest.all_files)
    document: dict[str, Any] = {"files": len(manifest.all_files), "targets": {}}
    if not run:
        return document
    entries = [manifest.target(name) for name in targets or [t.name for t in manifest.targets]]
    for index, entry in enumerate(entries):
        progress(f"verify {entry.name}", (index + 0.5) / (len(entries) + 0.5))
        document["targets"][entry.name] = _verify_target(folder, manifest, entry, targets)
    if not any(told["ran"] for told in document["targets"].values()):
        reasons = "; ".join(f"{n}: {told['reason']}" for n, told in document["targets"].items())
        raise VerificationError(
            f"the files are whole, but no artifact could be run here: {reasons}",
            "install requirements.txt, or build the engine with build.sh",
        )
    return document


def choose_target(folder: Path, manifest: Manifest) -> TargetEntry:
    """Return the first target of a result that has what its runtime opens: a file, or an engine.

    Raises:
        UnsupportedError: there is none.
    """
    for entry in manifest.targets:
        if entry.name in RUNNERS and runnable(folder, entry):
            return entry
    raise UnsupportedError(
        f"'{folder}' holds nothing that can be run yet", "build the engine first: build.sh"
    )


def runnable(folder: Path, entry: TargetEntry) -> bool:
    """Whether a target's runtime opens its model, or finds an engine beside it."""
    suffixes = _suffixes(entry)
    model = folder / entry.model
    beside = (path.suffix for path in model.parent.glob("engine*"))
    return model.suffix in suffixes or any(suffix in suffixes for suffix in beside)


def _suffixes(entry: TargetEntry) -> tuple[str, ...]:
    suffixes: tuple[str, ...] = resolve(RUNNERS, entry.name, "target").suffixes
    return suffixes


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an ``.npz`` file by name.

    Raises:
        LoadError: it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise LoadError(f"'{path}' cannot be read: {error}") from error


def _verify_target(
    folder: Path, manifest: Manifest, entry: TargetEntry, asked: Sequence[str] | None
) -> dict[str, Any]:
    if not runnable(folder, entry):
        if asked is not None:
            raise UnsupportedError(f"target '{entry.name}' has no engine yet", "run build.sh first")
        return {"ran": False, "reason": "it has no engine yet: run build.sh"}
    request = WorkerRequest(entry.name, folder / entry.model, folder / INPUTS, stacked=True)
    answer = run_in_child(request, _TIMEOUT_S)
    if answer.failure is not None:
        # Whoever has built an engine means to run it; what is not installed was not meant.
        built = (folder / entry.model).suffix not in _suffixes(entry)
        if asked is not None or built or isinstance(answer.failure, VerificationError):
            raise answer.failure
        return {"ran": False, "reason": answer.failure.message}
    expected = read_arrays(folder / expected_path(entry.name))
    figures = _compare(manifest, entry, expected, answer.outputs)
    layers = Counter(layer.precision for layer in answer.executed)
    return {"ran": True, **figures, "layers": dict(layers), "versions": dict(answer.versions)}


def _compare(
    manifest: Manifest,
    entry: TargetEntry,
    expected: Mapping[str, np.ndarray],
    got: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    first = manifest.outputs[0].name
    if {name: value.shape for name, value in got.items()} != {
        name: value.shape for name, value in expected.items()
    }:
        raise VerificationError(
            f"target '{entry.name}' has the outputs {_shapes(got)} in place of {_shapes(expected)}",
            "the engine belongs to another model: build it again with build.sh",
        )
    fidelity = min(sqnr_db(expected[name], got[name]) for name in expected)
    one, other = (values[first].astype(np.float64) for values in (expected, got))
    match = agreement_percent(manifest.task, _samples(one), _samples(other))
    if fidelity < MIN_SQNR_DB or (manifest.task in _JUDGED and match < MIN_MATCH):
        raise VerificationError(
            f"target '{entry.name}' differs from its simulation: SQNR {fidelity:.1f} dB (at least "
            f"{MIN_SQNR_DB:g}), agreement {match:.1f} % (at least {MIN_MATCH:g})",
            "this runtime computes the file wrongly: try another version of it, and report this",
        )
    return {"sqnr_db": fidelity if np.isfinite(fidelity) else None, "match": match}


def _samples(stacked: np.ndarray) -> np.ndarray:
    """Return ``[samples, ...]`` of stacked runs ``[runs, batch, ...]``."""
    return stacked.reshape(-1, *stacked.shape[2:]) if stacked.ndim > 2 else stacked


def _shapes(arrays: Mapping[str, np.ndarray]) -> str:
    return ", ".join(f"{name} {list(value.shape)}" for name, value in arrays.items())
