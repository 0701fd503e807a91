"""Runs ONNX files in ONNX Runtime on the CPU, with the settings of a plain session."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgekit.errors import EdgekitError, LoadError, VerificationError, require
from edgekit.runners.layer_times import LayerProfile
from edgekit.runners.onnx_graph import read_onnx_graph
from edgekit.runners.onnxruntime_layers import executed_layers
from edgekit.runners.onnxruntime_profile import read_profile
from edgekit.runners.tensors import TensorInfo, check_feeds
from edgekit.types import ExecutedLayer

_PROVIDERS = ("CPUExecutionProvider",)
_ERRORS_ONLY = 3  # ONNX Runtime's severity scale: 2 warning, 3 error
_NUMPY_TYPES = {"float": "float32", "double": "float64"}
# Without these names ONNX Runtime's own exception classes could only be caught as Exception.
_ERROR_NAMES = (
    "EngineError",
    "EPFail",
    "Fail",
    "InvalidArgument",
    "InvalidGraph",
    "InvalidProtobuf",
    "NoModel",
    "NoSuchFile",
    "NotImplemented",
    "RuntimeException",
)


class OnnxRuntimeRunner:
    """An ONNX file opened as ``InferenceSession(path)`` on the CPU provider.

    Args:
        model_path: the ONNX file.
        threads: intra-operator threads; ONNX Runtime's own choice if ``None``.
        disable_quant_qdq: keep Q/DQ nodes as float arithmetic and fold the constant ones. This
            simulates a file that is meant for another runtime: its integer grid is exact, its
            speed says nothing.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)

    def __init__(
        self, model_path: Path, *, threads: int | None = None, disable_quant_qdq: bool = False
    ) -> None:
        self._path = model_path
        self._threads = threads
        self._disable_quant_qdq = disable_quant_qdq
        self._session: Any = None
        self._inputs: tuple[TensorInfo, ...] = ()

    @staticmethod
    def describe() -> dict[str, Any]:
        """Return the version of ONNX Runtime and its execution providers."""
        runtime = import_onnxruntime()
        versions = {"onnxruntime": str(runtime.__version__)}
        return {"versions": versions, "devices": list(runtime.get_available_providers())}

    def __enter__(self) -> OnnxRuntimeRunner:
        self._session = self._open(self._options())
        self._inputs = input_infos(self._session)
        return self

    def __exit__(self, *exc: object) -> None:
        self._session = None

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The file's inputs."""
        return self._inputs

    @property
    def versions(self) -> dict[str, str]:
        """Version of ONNX Runtime."""
        return {"onnxruntime": str(import_onnxruntime().__version__)}

    def infer(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once: input name to array, output name to array.

        Raises:
            ConfigError: the feeds do not fit the inputs.
            VerificationError: ONNX Runtime failed while running.
        """
        session = self._opened()
        checked = check_feeds(feeds, self._inputs, self._where)
        names = [item.name for item in session.get_outputs()]
        try:
            values = session.run(names, checked)
        except runtime_errors() as error:
            raise VerificationError(f"ONNX Runtime failed on '{self._path}': {error}") from error
        return dict(zip(names, values, strict=True))

    def bind(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """Check the feeds and return ``session.run`` on them.

        Raises:
            ConfigError: the feeds do not fit the inputs.
        """
        session = self._opened()
        return functools.partial(session.run, None, check_feeds(feeds, self._inputs, self._where))

    def profile_layers(self, feeds: Mapping[str, np.ndarray], runs: int) -> LayerProfile:
        """Return the executed operators and their times, told by the profiler of a second session.

        Raises:
            ConfigError: the feeds do not fit the inputs.
        """
        checked = check_feeds(feeds, self._inputs, self._where)
        with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
            optimized = Path(folder) / "optimized.onnx"
            options = self._options()
            options.optimized_model_filepath = str(optimized)
            options.log_severity_level = _ERRORS_ONLY
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            session = self._open(options)
            for _ in range(1 + runs):
                session.run(None, checked)
            profile = Path(session.end_profiling()).read_text(encoding="utf-8")
            return read_profile(
                profile, read_onnx_graph(self._path), read_onnx_graph(optimized), runs
            )

    def executed_layers(self) -> list[ExecutedLayer]:
        """List the weighted layers of the optimized graph.

        The graph is written by a second session with the same settings, so that the session that
        infers stays a plain one.
        """
        self._opened()
        with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
            optimized = Path(folder) / "optimized.onnx"
            options = self._options()
            options.optimized_model_filepath = str(optimized)
            options.log_severity_level = _ERRORS_ONLY  # it warns that the file fits this CPU only
            self._open(options)
            return executed_layers(read_onnx_graph(self._path), read_onnx_graph(optimized))

    @property
    def _where(self) -> str:
        return f"'{self._path}'"

    def _opened(self) -> Any:
        if self._session is None:
            raise RuntimeError("the runner is not open: use it as a context manager")
        return self._session

    def _options(self) -> Any:
        options = import_onnxruntime().SessionOptions()
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        if self._disable_quant_qdq:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        return options

    def _open(self, options: Any) -> Any:
        runtime = import_onnxruntime()
        try:
            return runtime.InferenceSession(str(self._path), options, providers=list(_PROVIDERS))
        except runtime_errors() as error:
            raise LoadError(f"ONNX Runtime cannot open '{self._path}': {error}") from error


def import_onnxruntime() -> Any:
    """Import ONNX Runtime.

    Raises:
        MissingDependencyError: it is not installed.
    """
    return require("onnxruntime", extra="onnxruntime")


def runtime_errors() -> tuple[type[Exception], ...]:
    """Return what ONNX Runtime raises."""
    state = require("onnxruntime.capi.onnxruntime_pybind11_state", extra="onnxruntime")
    return tuple(getattr(state, name) for name in _ERROR_NAMES if hasattr(state, name))


def input_infos(session: Any) -> tuple[TensorInfo, ...]:
    """Return the inputs of an open session."""
    return tuple(
        TensorInfo(item.name, _numpy_type(item.type), _known_sizes(item.shape))
        for item in session.get_inputs()
    )


def _numpy_type(onnx_type: str) -> str:
    # ONNX Runtime writes "tensor(float)".
    if not onnx_type.startswith("tensor("):
        raise EdgekitError(f"ONNX Runtime: inputs of type '{onnx_type}' are not supported")
    name = onnx_type.removeprefix("tensor(").removesuffix(")")
    return _NUMPY_TYPES.get(name, name)


def _known_sizes(shape: list[int | str | None]) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in shape)
