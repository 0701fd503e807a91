"""From what the user names to what is timed: one lane for each file in each runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgekit.bench.network_lanes import Network, options_for
from edgekit.errors import ConfigError, LoadError, UnsupportedError
from edgekit.manifest import Manifest, TargetEntry, read_manifest, verify_files
from edgekit.registry import ARTIFACT_OF, RUNNERS, TARGETS, VARIANTS, resolve
from edgekit.runners.run_options import NetworkOptions

FLOAT, FILE = "float", "file"
ALL = "all"  # in place of names: whatever could run, and the reason for what cannot
_PRECISIONS = {"w8a8": "int8"}  # other schemes are called by their name
_KNOWN: Mapping[str, str] = {**RUNNERS, **VARIANTS}


@dataclass(frozen=True, slots=True)
class Lane:
    """One thing to time.

    Attributes:
        name: unique, for people.
        source: what the user named.
        target: the runtime: a target, or a variant of the registry.
        precision: of a result directory ``"float"``, ``"int8"``, or a scheme such as ``"w4a8"``; of
            a file ``"file"``.
        model: the file that the runtime opens.
        size_bytes: size of the model on disk.
        shapes: sizes of the inputs, as far as they are known here.
        baseline: name of the lane that this one is compared with.
        network: how torch opens the file, if it is one for torch.
    """

    name: str
    source: Path
    target: str
    precision: str
    model: Path
    size_bytes: int
    shapes: Mapping[str, tuple[int, ...]]
    baseline: str | None = None
    network: NetworkOptions = field(default_factory=NetworkOptions)


def precision_of(scheme: str) -> str:
    """Return what the lanes of a scheme are called: ``w8a8`` is ``int8``."""
    return _PRECISIONS.get(scheme, scheme)


def plan_lanes(
    paths: Sequence[Path],
    targets: Sequence[str] | None,
    shapes: Mapping[str, tuple[int, ...]],
    network: Network | None = None,
    file_options: NetworkOptions | None = None,
) -> list[Lane]:
    """Return what is to be timed.

    The lanes that are compared stand side by side, so that they run one right after the other.

    Args:
        paths: result directories and model files.
        targets: runtimes to use, ``["all"]`` for every one that there is; those that read the files
            if ``None``.
        shapes: sizes of inputs that the user states.
        network: the file that a result was made from, for torch.
        file_options: how torch opens files among ``paths``.

    Raises:
        ConfigError: nothing to time, or a runtime that does not exist or cannot read a file.
        LoadError: a path does not exist, or a result directory is damaged.
        UnsupportedError: a result holds a target that no runtime executes.
    """
    if not paths:
        raise ConfigError("nothing to time: name result directories or model files")
    _check_names(targets)
    lanes: list[Lane] = []
    for path, label in zip(paths, _labels(paths), strict=True):
        if path.is_dir():
            lanes += _of_result(path, label, targets, shapes, network)
        elif path.exists():
            lanes += _of_file(path, label, targets, shapes, file_options)
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


def _check_names(targets: Sequence[str] | None) -> None:
    for name in targets or ():
        if name not in TARGETS and name != ALL:
            resolve(_KNOWN, name, "target")
    if targets is not None and ALL in targets and len(targets) > 1:
        raise ConfigError(f"--targets: '{ALL}' stands alone", f"give '{ALL}', or names")


def _of_result(
    path: Path,
    label: str,
    targets: Sequence[str] | None,
    shapes: Mapping[str, tuple[int, ...]],
    network: Network | None,
) -> Iterator[Lane]:
    manifest = read_manifest(path)
    known = {**{spec.name: spec.shape for spec in manifest.inputs}, **shapes}
    for name in _names(manifest, targets, network):
        if name in VARIANTS and name not in ARTIFACT_OF:
            lane = Lane(f"{label}{name} {FLOAT}", path, name, FLOAT, path, 0, known)
            yield _of_network(path, manifest, lane, network)
        else:
            yield from _of_target(path, label, manifest, name, known)


def _names(
    manifest: Manifest, targets: Sequence[str] | None, network: Network | None
) -> Sequence[str]:
    held = [entry.name for entry in manifest.targets]
    if targets is None:
        return held
    if ALL not in targets:
        return targets
    variants = [name for name in VARIANTS if ARTIFACT_OF.get(name) in held]
    if network is not None:
        variants += [name for name in VARIANTS if name not in ARTIFACT_OF]
    return [*(name for name in held if name in RUNNERS), *variants]


def _of_network(path: Path, manifest: Manifest, lane: Lane, network: Network | None) -> Lane:
    if network is None:
        raise ConfigError(
            f"'{path}': {lane.target} runs the network from its own file, which no result holds",
            "name the file that was quantized, as in --network model.pt",
        )
    options, model = options_for(path, manifest, network), network.path
    return replace(lane, model=model, size_bytes=model.stat().st_size, network=options)


def _of_target(
    path: Path,
    label: str,
    manifest: Manifest,
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
) -> Iterator[Lane]:
    """Yield the lanes of a target, or of a variant that opens its artifact."""
    entry = manifest.target(ARTIFACT_OF.get(name, name))
    if name not in _KNOWN:
        raise UnsupportedError(
            f"'{path}': target '{name}' has no latency ({entry.reason})",
            "time a scheme that runtimes execute, such as --scheme w4a8",
        )
    verify_files(path, entry.files)
    precision = precision_of(manifest.scheme)
    integer = Lane(
        name=f"{label}{name} {precision}",
        source=path,
        target=name,
        precision=precision,
        model=path / entry.model,
        size_bytes=_size(entry),
        shapes=shapes,
    )
    reference = _reference(path, manifest, integer)
    if reference is None:
        yield integer
        return
    called = f"{label}{name} {FLOAT}"
    yield replace(reference, name=called, precision=FLOAT)
    yield replace(integer, baseline=called)


def _size(entry: TargetEntry) -> int:
    return sum(file.size_bytes for file in entry.files if file.path not in entry.engines)


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
    options: NetworkOptions | None,
) -> list[Lane]:
    own = [name for name in RUNNERS if path.suffix in _suffixes(name)]
    able = [*own, *(name for name in VARIANTS if path.suffix in _suffixes(name))]
    if not able:
        known = sorted({suffix for name in _KNOWN for suffix in _suffixes(name)})
        raise ConfigError(
            f"'{path}': no runtime opens '{path.suffix}' files",
            f"give a result directory, or a file with one of {', '.join(known)}",
        )
    chosen = targets or own or able[:1]
    if ALL in chosen:
        chosen = able
    for name in chosen:
        if name not in able:
            raise ConfigError(
                f"'{path}': {name} does not open '{path.suffix}' files",
                f"leave out --targets, or choose from {', '.join(able)}",
            )
    weights = path.with_suffix(".bin")  # OpenVINO keeps the weights beside the graph
    files = [path, weights] if path.suffix == ".xml" and weights.exists() else [path]
    lane = Lane(label, path, "", FILE, path, sum(file.stat().st_size for file in files), shapes)
    if options is not None:
        lane = replace(lane, network=options)
    return [replace(lane, name=f"{label}{name}", target=name) for name in chosen]


def _with_baselines(lanes: list[Lane]) -> list[Lane]:
    """Compare each further file with the first one in the same runtime, and put them together."""
    first: dict[str, str] = {}
    compared = []
    for lane in lanes:
        if lane.precision == FILE:
            baseline = first.setdefault(lane.target, lane.name)
            lane = lane if baseline == lane.name else replace(lane, baseline=baseline)
        compared.append(lane)
    order = list(_KNOWN)
    return sorted(compared, key=lambda lane: (lane.precision == FILE, order.index(lane.target)))


def _suffixes(target: str) -> tuple[str, ...]:
    try:
        suffixes: tuple[str, ...] = resolve(_KNOWN, target, "target").suffixes
    except ModuleNotFoundError:  # on a device, where the parts that need torch are left out
        return ()
    return suffixes
