"""From what the user names to what is timed: one lane for each file in each runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.errors import ConfigError, LoadError, UnsupportedError
from edgekit.manifest import Manifest, read_manifest, verify_files
from edgekit.registry import RUNNERS, TARGETS, resolve

FLOAT, INTEGER, FILE = "float", "int8", "file"


@dataclass(frozen=True, slots=True)
class Lane:
    """One thing to time.

    Attributes:
        name: unique, for people.
        source: what the user named.
        target: the runtime.
        precision: ``"float"`` or ``"int8"`` of a result directory, or ``"file"``.
        model: the file that the runtime opens.
        size_bytes: size of the model on disk.
        shapes: sizes of the inputs, as far as they are known here.
        baseline: name of the lane that this one is compared with.
    """

    name: str
    source: Path
    target: str
    precision: str
    model: Path
    size_bytes: int
    shapes: Mapping[str, tuple[int, ...]]
    baseline: str | None = None


def plan_lanes(
    paths: Sequence[Path],
    targets: Sequence[str] | None,
    shapes: Mapping[str, tuple[int, ...]],
) -> list[Lane]:
    """Return what is to be timed.

    The lanes that are compared stand side by side, so that they run one right after the other.

    Args:
        paths: result directories and model files.
        targets: runtimes to use; those that read the files if ``None``.
        shapes: sizes of inputs that the user states.

    Raises:
        ConfigError: nothing to time, or a runtime that does not exist or cannot read a file.
        LoadError: a path does not exist, or a result directory is damaged.
        UnsupportedError: a result holds a target that no runtime executes.
    """
    if not paths:
        raise ConfigError("nothing to time: name result directories or model files")
    for name in targets or ():
        if name not in TARGETS:
            resolve(RUNNERS, name, "target")
    lanes: list[Lane] = []
    for path, label in zip(paths, _labels(paths), strict=True):
        if path.is_dir():
            lanes += _of_result(path, label, targets, shapes)
        elif path.exists():
            lanes += _of_file(path, label, targets, shapes)
        else:
            raise LoadError(f"'{path}' does not exist")
    return _with_baselines(lanes)


def _labels(paths: Sequence[Path]) -> list[str]:
    """Return the shortest distinct names; none is needed for a single directory."""
    if len(paths) == 1 and paths[0].is_dir():
        return [""]
    names = [path.resolve().name for path in paths]
    if len(set(names)) == len(names):
        return [f"{name} " for name in names]
    if len(set(paths)) != len(paths):
        raise ConfigError("a path is given twice", "name each directory or file once")
    return [f"{path} " for path in paths]


def _of_result(
    path: Path,
    label: str,
    targets: Sequence[str] | None,
    shapes: Mapping[str, tuple[int, ...]],
) -> list[Lane]:
    manifest = read_manifest(path)
    entries = [manifest.target(name) for name in targets] if targets else list(manifest.targets)
    known = {**{spec.name: spec.shape for spec in manifest.inputs}, **shapes}
    lanes = []
    for entry in entries:
        if entry.name not in RUNNERS:
            raise UnsupportedError(
                f"'{path}': target '{entry.name}' has no latency ({entry.reason})",
                "time a scheme that runtimes execute, such as --scheme w4a8",
            )
        verify_files(path, entry.files)
        integer = Lane(
            name=f"{label}{entry.name} {INTEGER}",
            source=path,
            target=entry.name,
            precision=INTEGER,
            model=path / entry.model,
            size_bytes=sum(f.size_bytes for f in entry.files if f.path not in entry.engines),
            shapes=known,
        )
        reference = _reference(path, manifest, integer)
        if reference is None:
            lanes.append(integer)
        else:
            name = f"{label}{entry.name} {FLOAT}"
            lanes.append(replace(reference, name=name, precision=FLOAT))
            lanes.append(replace(integer, baseline=name))
    return lanes


def _reference(path: Path, manifest: Manifest, integer: Lane) -> Lane | None:
    """Return the float network in the runtime of an INT8 lane, if that runtime opens it."""
    if Path(manifest.reference).suffix not in _suffixes(integer.target):
        return None
    file = next(file for file in manifest.files if file.path == manifest.reference)
    verify_files(path, [file])
    return replace(integer, model=path / manifest.reference, size_bytes=file.size_bytes)


def _of_file(
    path: Path,
    label: str,
    targets: Sequence[str] | None,
    shapes: Mapping[str, tuple[int, ...]],
) -> list[Lane]:
    able = [name for name in RUNNERS if path.suffix in _suffixes(name)]
    if not able:
        known = sorted({suffix for name in RUNNERS for suffix in _suffixes(name)})
        raise ConfigError(
            f"'{path}': no runtime opens '{path.suffix}' files",
            f"give a result directory, or a file with one of {', '.join(known)}",
        )
    for name in targets or ():
        if name not in able:
            raise ConfigError(
                f"'{path}': {name} does not open '{path.suffix}' files",
                f"leave out --targets, or choose from {', '.join(able)}",
            )
    weights = path.with_suffix(".bin")  # OpenVINO keeps the weights beside the graph
    files = [path, weights] if path.suffix == ".xml" and weights.exists() else [path]
    size = sum(file.stat().st_size for file in files)
    return [
        Lane(f"{label}{name}", path, name, FILE, path, size, shapes) for name in targets or able
    ]


def _with_baselines(lanes: list[Lane]) -> list[Lane]:
    """Compare each further file with the first one in the same runtime, and put them together."""
    first: dict[str, str] = {}
    compared = []
    for lane in lanes:
        if lane.precision == FILE:
            baseline = first.setdefault(lane.target, lane.name)
            lane = lane if baseline == lane.name else replace(lane, baseline=baseline)
        compared.append(lane)
    order = list(RUNNERS)
    return sorted(compared, key=lambda lane: (lane.precision == FILE, order.index(lane.target)))


def _suffixes(target: str) -> tuple[str, ...]:
    suffixes: tuple[str, ...] = resolve(RUNNERS, target, "target").suffixes
    return suffixes
