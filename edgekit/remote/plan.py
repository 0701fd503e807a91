"""Which files a benchmark on a device needs there, and what has to be built from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.bench.lanes import Lane, plan_lanes
from edgekit.errors import UnsupportedError
from edgekit.manifest import MANIFEST_NAME, read_manifest, write_manifest
from edgekit.registry import ARTIFACT_OF, BUILDERS
from edgekit.remote.transfer import Upload

ARTIFACTS = "artifacts"
_ENGINE = "engine.plan"
_COMPANIONS = (".data", ".bin")  # ONNX with external data, and OpenVINO's weights


@dataclass(frozen=True, slots=True)
class Build:
    """A file from which an engine is built, and the engine; both inside of the device's folder."""

    model: str
    engine: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What happens on the device.

    Attributes:
        uploads: files to copy.
        paths: what to time, inside of the device's folder, to what the user called it.
        builds: engines to build first.
        targets: runtimes to use; all that read the files if ``None``.
        skipped: what is left out, with the reason, by the name that it would have.
    """

    uploads: tuple[Upload, ...]
    paths: Mapping[str, str]
    builds: tuple[Build, ...]
    targets: tuple[str, ...] | None
    skipped: Mapping[str, str]


def plan_bench(
    paths: Sequence[Path],
    targets: Sequence[str] | None,
    problems: Mapping[str, str],
    scratch: Path,
) -> Plan:
    """Choose the files.

    Args:
        paths: result directories and model files.
        targets: runtimes that must be used; those that the device has if ``None``.
        problems: runtimes that the device does not have, with the reason.
        scratch: empty folder for what is written for the device.

    Raises:
        EdgekitError: what a benchmark on this machine would raise about the paths.
        UnsupportedError: the device can run nothing of it.
    """
    lanes = plan_lanes(paths, targets, {})
    skipped = {} if targets else _skipped(lanes, problems)
    running = [lane for lane in lanes if lane.name not in skipped]
    if not running:
        reasons = dict.fromkeys(skipped.values())
        raise UnsupportedError(
            f"the device can run nothing of this: {'; '.join(reasons)}",
            "install a runtime there: edgekit doctor --device names what is missing",
        )
    uploads: list[Upload] = []
    builds: list[Build] = []
    called: dict[str, str] = {}
    for number, path in enumerate(paths):
        mine = [lane for lane in running if lane.source == path]
        if not mine:
            continue
        folder = f"{ARTIFACTS}/{number}/{path.resolve().name}"
        called[folder] = str(path)
        if path.is_dir():
            own = scratch / str(number)
            own.mkdir()
            uploads += _result_files(path, mine, folder, own)
            builds += _builds(path, mine, folder)
        else:
            beside = f"{ARTIFACTS}/{number}"
            uploads += [Upload(file, f"{beside}/{file.name}") for file in _files(path.resolve())]
    chosen = None if targets is None else tuple(targets)
    return Plan(tuple(uploads), called, tuple(builds), chosen, skipped)


def _skipped(lanes: Sequence[Lane], problems: Mapping[str, str]) -> dict[str, str]:
    return {lane.name: problems[lane.target] for lane in lanes if lane.target in problems}


def _artifact(lane: Lane) -> str:
    return ARTIFACT_OF.get(lane.target, lane.target)


def _result_files(path: Path, lanes: Sequence[Lane], folder: str, own: Path) -> Iterator[Upload]:
    """Yield the files of the lanes, and a manifest that lists no others.

    Engines that were built elsewhere do not load on the device, so they stay here.
    """
    manifest = read_manifest(path)
    names = {_artifact(lane) for lane in lanes}
    entries = []
    for entry in manifest.targets:
        if entry.name in names:
            files = tuple(file for file in entry.files if file.path not in entry.engines)
            entries.append(replace(entry, files=files, engines=()))
    models = {lane.model for lane in lanes}
    kept = tuple(file for file in manifest.files if path / file.path in models)
    # Where no runtime of the device reads the float network, its entry stays: it is never opened.
    named = kept or tuple(file for file in manifest.files if file.path == manifest.reference)
    shortened = replace(manifest, targets=tuple(entries), files=named)
    yield Upload(write_manifest(shortened, own), f"{folder}/{MANIFEST_NAME}")
    present = {*kept, *(file for entry in entries for file in entry.files)}
    for file in sorted(present, key=lambda entry: entry.path):
        yield Upload(path / file.path, f"{folder}/{file.path}")


def _builds(path: Path, lanes: Sequence[Lane], folder: str) -> Iterator[Build]:
    manifest = read_manifest(path)
    for name in sorted({_artifact(lane) for lane in lanes} & set(BUILDERS)):
        # A variant may open the same file without an engine.
        if any(lane.target == name for lane in lanes):
            model = Path(manifest.target(name).model)
            engine = model.with_name(_ENGINE)
            yield Build(f"{folder}/{model.as_posix()}", f"{folder}/{engine.as_posix()}")


def _files(path: Path) -> Iterator[Path]:
    yield path
    for suffix in _COMPANIONS:
        for beside in {path.with_suffix(suffix), path.with_name(path.name + suffix)}:
            if beside != path and beside.is_file():
                yield beside
