"""Builds TensorRT engines in a child process, by whichever builder is installed.

Standard TensorRT (10 or 11) builds for the GPU of this machine and needs one. TensorRT for RTX
builds ahead of time, without a GPU, for named compute capabilities. Both run the same code
(:mod:`edgekit.exporters._tensorrt_worker`), which gets the module as an argument.

A builder is native code: it may crash, print to the terminal or run for minutes. In a child
process a crash is an :class:`~edgekit.errors.ExportError` with the builder's last words, and the
pipeline can do other work until :meth:`EngineBuild.wait`.

NVIDIA's polygraphy is not used here: its loaders wrap the same eight calls, choose between the
two builders by an environment variable read at import, and reduce the parser's error records
(node, operator, reason) to a log line. On a device it is the tool for comparing an engine with
ONNX Runtime.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from edgekit.errors import ConfigError, EdgekitError, ExportError
from edgekit.types import ExecutedLayer, InputSpec

from ._worker_process import WorkerProcess

Kind = Literal["standard", "rtx"]

# Order of preference. The key is the import name of the bindings.
BUILDERS: Mapping[str, Kind] = {"tensorrt": "standard", "tensorrt_rtx": "rtx"}
COMPUTE_CAPABILITIES = ("SM86", "SM89")  # GeForce RTX 30 (and Orin's nearest sibling), RTX 40
JETSON_NOTE = (
    "engines of TensorRT for RTX do not load on a Jetson: 'edgekit deploy' makes a bundle that "
    "builds one there"
)
PORTABILITY_NOTE = (
    "the engine loads only with the TensorRT version, operating system and GPU architecture that "
    "built it"
)

_WORKER = "edgekit.exporters._tensorrt_worker"
# Otherwise standard TensorRT 10 warns that it loads every CUDA kernel at once.
_ENVIRONMENT = {"CUDA_MODULE_LOADING": "LAZY"}
_PROBE_TIMEOUT_S = 60.0
_ABOUT_QUANTIZATION = re.compile(r"q/?dq|quantiz|scale|zero.?point|calibrat|int8", re.IGNORECASE)
# RTX multiplies in FP32 and says so for FP16 scales. Every FP16 number is an FP32 number.
_LOSSLESS = re.compile(r"Converting conv (activation|weight) scales to fp32")


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What a build may use.

    ``workspace_bytes``: scratch memory that a kernel may ask for. ``optimization_level``: 0 to 5,
    ``None`` is TensorRT's own default. ``timing_cache``: file that is read before and written
    after a build by standard TensorRT (RTX has none). ``timeout_s``: seconds for all engines.
    """

    workspace_bytes: int = 1 << 30
    optimization_level: int | None = None
    timing_cache: Path | None = None
    timeout_s: float = 1800.0

    def __post_init__(self) -> None:
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise ConfigError(
                f"TensorRT optimization level {self.optimization_level}: supported are 0 to 5"
            )
        if self.workspace_bytes < 1 or not self.timeout_s > 0:
            raise ConfigError("TensorRT: the workspace and the timeout must be positive")


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """One engine file: what built it, for what, and what TensorRT said about it.

    ``compute_capability`` is ``None`` for the GPU of this machine. ``layers`` holds the executed
    precision of every convolution and matrix product. ``warnings`` are distinct messages.
    """

    path: Path
    size_bytes: int
    builder: str
    compute_capability: str | None
    seconds: float
    layers: tuple[ExecutedLayer, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "path": str(self.path)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BuiltEngine:
        """Read what :meth:`to_dict` wrote."""
        return cls(
            path=Path(data["path"]),
            size_bytes=int(data["size_bytes"]),
            builder=str(data["builder"]),
            compute_capability=data["compute_capability"],
            seconds=float(data["seconds"]),
            layers=tuple(ExecutedLayer(**layer) for layer in data["layers"]),
            warnings=tuple(data["warnings"]),
            notes=tuple(data["notes"]),
        )


@dataclass(frozen=True, slots=True)
class BuildReport:
    """The engines of one build."""

    engines: tuple[BuiltEngine, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Every distinct warning of the parser and the builder."""
        return tuple(dict.fromkeys(text for engine in self.engines for text in engine.warnings))

    @property
    def quantization_warnings(self) -> tuple[str, ...]:
        """Warnings about quantization that may change numbers or speed."""
        return tuple(
            text
            for text in self.warnings
            if _ABOUT_QUANTIZATION.search(text) and not _LOSSLESS.search(text)
        )


@dataclass(frozen=True, slots=True)
class EngineBuilder:
    """A builder that works on this machine. ``name`` is the import name of its bindings."""

    name: str
    version: str
    kind: Kind

    @property
    def label(self) -> str:
        """Name and version for people."""
        return f"TensorRT{' for RTX' if self.kind == 'rtx' else ''} {self.version}"

    def build(
        self,
        onnx_path: Path,
        out_dir: Path,
        inputs: Sequence[InputSpec],
        *,
        compute_capabilities: Sequence[str] = COMPUTE_CAPABILITIES,
        options: BuildOptions | None = None,
    ) -> BuildReport:
        """Build and wait; see :func:`start_build`."""
        build = start_build(
            self,
            onnx_path,
            out_dir,
            inputs,
            compute_capabilities=compute_capabilities,
            options=options,
        )
        return build.wait()


@dataclass(frozen=True, slots=True)
class BuilderProbe:
    """What one installed builder said when it was tried. ``builder`` is ``None`` if unusable."""

    name: str
    builder: EngineBuilder | None
    reason: str = ""


@functools.cache
def probe_builders() -> tuple[BuilderProbe, ...]:
    """Try every installed builder in a child process, in order of preference."""
    installed = [name for name in BUILDERS if importlib.util.find_spec(name) is not None]
    return tuple(probe_builder(name, BUILDERS[name]) for name in installed)


def probe_builder(name: str, kind: Kind) -> BuilderProbe:
    """Import one builder in a child process and create its native object.

    Standard TensorRT cannot do the latter without a GPU: then the probe says so.
    """
    request = {"task": "probe", "module": name, "kind": kind}
    with WorkerProcess(_WORKER, request, _ENVIRONMENT) as worker:
        try:
            result = worker.result(_PROBE_TIMEOUT_S, f"trying the Python package '{name}'")
        except EdgekitError as error:
            return BuilderProbe(name, None, error.message)
    return BuilderProbe(name, EngineBuilder(name, str(result["version"]), kind))


def find_builder() -> EngineBuilder | None:
    """Return the first builder that works here, or ``None``; :func:`probe_builders` says why."""
    return next((probe.builder for probe in probe_builders() if probe.builder is not None), None)


def start_build(
    builder: EngineBuilder,
    onnx_path: Path,
    out_dir: Path,
    inputs: Sequence[InputSpec],
    *,
    compute_capabilities: Sequence[str] = COMPUTE_CAPABILITIES,
    options: BuildOptions | None = None,
) -> EngineBuild:
    """Start building engines from an ONNX file and return at once.

    Args:
        builder: what :func:`find_builder` returned.
        onnx_path: the QDQ graph in TensorRT's form.
        out_dir: existing directory for ``engine.rtx.smXX.plan``, one for each compute capability,
            or for ``engine.plan`` by standard TensorRT.
        inputs: example shapes; every dynamic axis is fixed to them (batch 1).
        compute_capabilities: names such as ``"SM86"``; standard TensorRT ignores them.
        options: limits of the build.

    Raises:
        ExportError: ``onnx_path`` is no file.
    """
    if not onnx_path.is_file():
        raise ExportError(f"TensorRT: '{onnx_path}' is not a file")
    options = options or BuildOptions()
    plans = {
        f"engine.rtx.{capability.lower()}.plan": capability for capability in compute_capabilities
    }
    request = {
        "task": "build",
        "module": builder.name,
        "kind": builder.kind,
        "onnx_path": str(onnx_path.resolve()),
        "out_dir": str(out_dir.resolve()),
        "plans": plans if builder.kind == "rtx" else {"engine.plan": None},
        "inputs": {spec.name: list(spec.shape) for spec in inputs},
        "workspace_bytes": options.workspace_bytes,
        "optimization_level": options.optimization_level,
        "timing_cache": str(options.timing_cache.resolve()) if options.timing_cache else None,
    }
    return EngineBuild(builder, request, options.timeout_s)


class EngineBuild:
    """A build that is under way. Leaving a ``with`` block early stops it and removes its files."""

    def __init__(
        self, builder: EngineBuilder, request: Mapping[str, Any], timeout_s: float
    ) -> None:
        self._builder = builder
        self._request = request
        self._timeout_s = timeout_s
        self._report: BuildReport | None = None
        self._worker = WorkerProcess(_WORKER, request, _ENVIRONMENT)

    def __enter__(self) -> EngineBuild:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def wait(self) -> BuildReport:
        """Wait for the engines.

        Raises:
            ExportError: the parser rejects the file, the builder fails, crashes or takes longer
                than ``timeout_s`` seconds since its start.
            OutputError: an engine cannot be written.
        """
        if self._report is None:
            with self:
                what = f"{self._builder.label} building '{Path(self._request['onnx_path']).name}'"
                result = self._worker.result(self._timeout_s, what)
                self._report = BuildReport(
                    tuple(BuiltEngine.from_dict(engine) for engine in result["engines"])
                )
        return self._report

    def close(self) -> None:
        """Stop the child if it still runs. A build without a report leaves no engine."""
        self._worker.close()
        if self._report is None:
            for name in self._request["plans"]:
                (Path(self._request["out_dir"]) / name).unlink(missing_ok=True)


def build_command(onnx_path: Path, inputs: Sequence[InputSpec] = ()) -> str:
    """Return the trtexec command that builds ``engine.plan`` beside ``onnx_path`` on a device.

    TensorRT 10 needs ``--stronglyTyped``; TensorRT 11 ignores it, so one line serves both.
    """
    command = [
        "trtexec",
        f"--onnx={onnx_path}",
        f"--saveEngine={onnx_path.with_name('engine.plan')}",
        "--stronglyTyped",
    ]
    shapes = [
        f"{spec.name}:{'x'.join(map(str, spec.shape))}"
        for spec in inputs
        if spec.dynamic_batch or spec.variable_axes
    ]
    if shapes:
        command.append(f"--shapes={','.join(shapes)}")
    workspace_mib = BuildOptions().workspace_bytes >> 20
    command += [
        f"--memPoolSize=workspace:{workspace_mib}",
        "--profilingVerbosity=detailed",
        "--skipInference",
    ]
    return shlex.join(command)
