"""The commands of the device part: a request comes in as JSON, a document goes out as JSON."""

from __future__ import annotations

import inspect
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import registry
from edgekit.device.events import Events
from edgekit.errors import ConfigError, OutputError

Document = dict[str, Any]
_RUN_TIMEOUT_S = 3600.0
# Options of `bench` that are no JSON, or that need torch.
_NOT_ASKED = ("progress", "finished", "network", "file_options")


def run_command(name: str, request: Mapping[str, Any], events: Events) -> Document:
    """Run a command.

    Args:
        name: a key of :data:`COMMANDS`.
        request: its options.
        events: told as the work advances.

    Raises:
        ConfigError: the request has unknown or missing options.
        EdgekitError: what the command raises.
    """
    return COMMANDS[name](request, events)


def bench(request: Mapping[str, Any], events: Events) -> Document:
    """Time artifacts; the options are those of :func:`edgekit.bench.bench`, ``paths`` first.

    What is finished is told after each round, for the case that the rest never arrives.
    """
    from edgekit.bench import bench as time_artifacts

    parameters = inspect.signature(time_artifacts).parameters
    known = [name for name in parameters if name not in _NOT_ASKED]
    check_options("bench", request, required=("paths",), optional=known)
    options = dict(request)
    shapes = options.get("shapes") or {}
    options["shapes"] = {name: tuple(shape) for name, shape in shapes.items()}
    report = time_artifacts(
        **options,
        finished=lambda unexplained: events.partial(unexplained.to_dict()),
        progress=events.progress,
    )
    return report.to_dict()


def doctor(request: Mapping[str, Any], events: Events) -> Document:
    """Say what this machine can do; there are no options."""
    from edgekit.doctor import doctor as examine

    check_options("doctor", request, required=(), optional=())
    events.progress("doctor", 0.0)
    return examine().to_dict()


def build(request: Mapping[str, Any], events: Events) -> Document:
    """Build an engine: ``model``, ``out``, and optionally ``timing_cache`` and ``shapes``.

    ``shapes`` are the sizes of inputs that the file leaves open; the manifest of a result or
    bundle around the model states them, too. An engine of TensorRT for RTX bears in its name what
    it is for, so the document's ``engine`` may be another path than ``out``.
    """
    check_options("build", request, required=("model", "out"), optional=("timing_cache", "shapes"))
    model, out = Path(request["model"]), Path(request["out"])
    cache = request.get("timing_cache")
    shapes = request.get("shapes") or _known_shapes(model)
    events.progress(f"build {out.name}", 0.0)
    build_engine = registry.resolve(registry.BUILDERS, "tensorrt", "engine builder")
    engine = build_engine(
        model,
        out,
        shapes={name: tuple(shape) for name, shape in shapes.items()},
        timing_cache=None if cache is None else Path(cache),
    )
    return {
        "engine": str(engine.path),
        "size_bytes": engine.size_bytes,
        "seconds": engine.seconds,
        "version": engine.builder,
        "compute_capability": engine.compute_capability,
        "layers": dict(Counter(layer.precision for layer in engine.layers)),
        "warnings": list(engine.warnings),
    }


def run(request: Mapping[str, Any], events: Events) -> Document:
    """Run a model on inputs and write its outputs, ``.npz`` files both.

    Either ``model`` and ``target``, or ``result``: a result or bundle, of which the first target
    is taken that has what its runtime opens. ``stacked``: axis 0 of the inputs counts runs.
    """
    from edgekit.runners.child import WorkerRequest, run_in_child

    target, model = _artifact(request)
    worker = WorkerRequest(
        target,
        model,
        Path(request["inputs"]),
        batch_size=int(request.get("batch", 1)),
        threads=request.get("threads"),
        stacked=bool(request.get("stacked", False)),
    )
    events.progress(f"run {target}", 0.0)
    answer = run_in_child(worker, _RUN_TIMEOUT_S)
    if answer.failure is not None:
        raise answer.failure
    write_arrays(Path(request["outputs"]), answer.outputs)
    return {
        "target": target,
        "outputs": {name: list(array.shape) for name, array in answer.outputs.items()},
        "layers": [asdict(layer) for layer in answer.executed],
        "versions": dict(answer.versions),
        "peak_memory_bytes": answer.peak_memory_bytes,
    }


def _artifact(request: Mapping[str, Any]) -> tuple[str, Path]:
    """Return the target and the model that a request for ``run`` means."""
    from edgekit.device.bundle import choose_target
    from edgekit.manifest import read_manifest, verify_files

    whole = "result" in request
    named = ("result",) if whole else ("model", "target")
    check_options(
        "run",
        request,
        required=(*named, "inputs", "outputs"),
        optional=("threads", "batch", "stacked", "target"),
    )
    if not whole:
        return str(request["target"]), Path(request["model"])
    folder = Path(request["result"])
    manifest = read_manifest(folder)
    target = request.get("target")
    entry = choose_target(folder, manifest) if target is None else manifest.target(str(target))
    verify_files(folder, entry.files)
    return entry.name, folder / entry.model


def verify(request: Mapping[str, Any], events: Events) -> Document:
    """Check a bundle: the hashes of its files, and with ``run`` what its artifacts compute."""
    from edgekit.device.bundle import verify_bundle

    check_options("verify", request, required=("bundle",), optional=("run", "targets"))
    targets = request.get("targets")
    return verify_bundle(
        Path(request["bundle"]),
        run=bool(request.get("run", True)),
        targets=None if targets is None else tuple(targets),
        progress=events.progress,
    )


COMMANDS: Mapping[str, Callable[[Mapping[str, Any], Events], Document]] = {
    "bench": bench,
    "doctor": doctor,
    "build": build,
    "run": run,
    "verify": verify,
}


def check_options(
    command: str,
    request: Mapping[str, Any],
    *,
    required: Collection[str],
    optional: Collection[str],
) -> None:
    """Compare the keys of a request with those of its command.

    Raises:
        ConfigError: one is missing or unknown.
    """
    missing = [name for name in required if name not in request]
    unknown = sorted(set(request) - {*required, *optional})
    if missing or unknown:
        what = f"needs {', '.join(missing)}" if missing else f"has no option {', '.join(unknown)}"
        known = ", ".join(dict.fromkeys((*required, *optional))) or "none"
        raise ConfigError(f"the request for '{command}' {what}", f"its options: {known}")


def _known_shapes(model: Path) -> Mapping[str, tuple[int, ...]]:
    """Return the input shapes in the manifest beside or above a model; empty without one."""
    from edgekit.manifest import MANIFEST_NAME, read_manifest

    for folder in (model.parent, model.parent.parent):
        if (folder / MANIFEST_NAME).is_file():
            return {spec.name: spec.shape for spec in read_manifest(folder).inputs}
    return {}


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an ``.npz`` file in which names are free; equal arrays give equal bytes.

    ``numpy.savez`` takes some names for its own arguments, and writes the time into the file.

    Raises:
        OutputError: the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.part")
    try:
        with zipfile.ZipFile(partial, "w") as archive:
            for name, array in arrays.items():
                member = zipfile.ZipInfo(f"{name}.npy")  # dated 1980, as all members
                with archive.open(member, "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(
            f"'{path}' cannot be written: {error.strerror or error}", "choose another file"
        ) from error
