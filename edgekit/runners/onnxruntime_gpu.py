"""Runs ONNX files in ONNX Runtime on an NVIDIA GPU: its CUDA and its TensorRT provider."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgekit.errors import LoadError, UnsupportedError, VerificationError
from edgekit.runners.cuda import CudaDevice
from edgekit.runners.onnx_graph import read_onnx_graph
from edgekit.runners.onnxruntime import (
    OnnxRuntimeRunner,
    import_onnxruntime,
    input_infos,
    runtime_errors,
)
from edgekit.runners.onnxruntime_binding import DeviceBinding, bind_on_device
from edgekit.runners.run_options import RunOptions, Setup
from edgekit.runners.tensors import TensorInfo, check_feeds
from edgekit.types import ExecutedLayer

CPU, CUDA, TENSORRT = (
    "CPUExecutionProvider",
    "CUDAExecutionProvider",
    "TensorrtExecutionProvider",
)
_QUANTIZING = ("QuantizeLinear", "DequantizeLinear")
Providers = list[tuple[str, dict[str, str]]]


def cuda_provider(stream: int, *, cuda_graph: bool) -> tuple[str, dict[str, str]]:
    """Return the CUDA provider and its options: a plain session but for stream and graph.

    Args:
        stream: handle of the CUDA stream to work on, so that events can be put around the work.
        cuda_graph: whether to record one.
    """
    options = {"device_id": "0", "user_compute_stream": str(stream)}
    return CUDA, {**options, **({"enable_cuda_graph": "1"} if cuda_graph else {})}


def tensorrt_provider(
    stream: int, cache: Path, *, int8: bool, cuda_graph: bool
) -> tuple[str, dict[str, str]]:
    """Return the TensorRT provider and its options, with its engines and timings cached.

    Args:
        stream: handle of the CUDA stream to work on.
        cache: folder for engines and timings.
        int8: whether the file has Q/DQ nodes, whose kernels TensorRT 10 has to be allowed.
        cuda_graph: whether to record one.
    """
    return TENSORRT, {
        "device_id": "0",
        "user_compute_stream": str(stream),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
        **({"trt_int8_enable": "1"} if int8 else {}),
        **({"trt_cuda_graph_enable": "1"} if cuda_graph else {}),
    }


class CudaRunner:
    """An ONNX file on the CUDA provider of ONNX Runtime.

    Args:
        model_path: the ONNX file.
        threads: accepted like every runner's; a GPU has no use for it.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)
    provider: ClassVar[str] = CUDA

    def __init__(self, model_path: Path, *, threads: int | None = None) -> None:
        del threads
        self._path = model_path
        self._options = RunOptions()
        self._stack = ExitStack()
        self._device: CudaDevice | None = None
        self._session: Any = None
        self._passed: Providers = []
        self._bound: DeviceBinding | None = None
        self._inputs: tuple[TensorInfo, ...] = ()

    @staticmethod
    def describe() -> dict[str, Any]:
        """Return the version of ONNX Runtime and its execution providers."""
        return OnnxRuntimeRunner.describe()

    def tune(self, options: RunOptions) -> None:
        """Take the choice of copies, of a CUDA graph and of the folder for engines."""
        self._options = options

    @property
    def setup(self) -> Setup:
        """The GPU, the choices, and the options of the providers."""
        passed = {f"{p}.{key}": value for p, given in self._passed for key, value in given.items()}
        return Setup("cuda", self._options.copies, self._options.cuda_graph, passed)

    def __enter__(self) -> CudaRunner:
        runtime = import_onnxruntime()
        offered = list(runtime.get_available_providers())
        if self.provider not in offered:
            raise UnsupportedError(
                f"this ONNX Runtime has no {self.provider}, only {', '.join(offered)}",
                "replace the package onnxruntime by onnxruntime-gpu",
            )
        with ExitStack() as stack:
            self._device = CudaDevice()
            stack.callback(self._device.close)
            self._passed = self._providers(self._device.stream, stack)
            self._session = self._open(runtime)
            self._inputs = input_infos(self._session)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bound = None
        self._session = None
        self._stack.close()

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
        checked = check_feeds(feeds, self._inputs, f"'{self._path}'")
        names = [item.name for item in self._session.get_outputs()]
        try:
            values = self._session.run(names, checked)
        except runtime_errors() as error:
            raise VerificationError(f"ONNX Runtime failed on '{self._path}': {error}") from error
        return dict(zip(names, values, strict=True))

    def bind(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """Check the feeds, put them on the GPU, and return a call that runs on them.

        Raises:
            ConfigError: the feeds do not fit the inputs.
        """
        checked = check_feeds(feeds, self._inputs, f"'{self._path}'")
        # A recorded graph cannot be run to learn the sizes of outputs: the CPU provider tells them.
        with OnnxRuntimeRunner(self._path, threads=1) as reference:
            results = reference.infer(checked)
        self._bound = bind_on_device(self._session, checked, results, "cuda")
        return self._bound.run_with_copies if self._options.copies else self._bound.run

    def device_times(self, runs: int) -> list[float]:
        """Return the milliseconds of the GPU for each of some runs of what was bound."""
        if self._device is None or self._bound is None:
            raise RuntimeError("nothing is bound: call bind first")
        return [self._device.elapsed_ms(self._bound.enqueue) for _ in range(runs)]

    def executed_layers(self) -> list[ExecutedLayer]:
        """Return nothing: the providers do not tell which kernels they run."""
        return []

    def _providers(self, stream: int, stack: ExitStack) -> Providers:
        del stack  # no folder is needed
        return [cuda_provider(stream, cuda_graph=self._options.cuda_graph), (CPU, {})]

    def _open(self, runtime: Any) -> Any:
        if hasattr(runtime, "preload_dlls"):
            runtime.preload_dlls()  # CUDA and cuDNN from Python packages, where they are installed
        try:
            session = runtime.InferenceSession(str(self._path), providers=self._passed)
        except runtime_errors() as error:
            raise LoadError(f"ONNX Runtime cannot open '{self._path}': {error}") from error
        if self.provider not in session.get_providers():  # it falls back, with a line in its log
            raise UnsupportedError(
                f"ONNX Runtime has {self.provider} but cannot start it, and ran on "
                f"{', '.join(session.get_providers())} instead",
                "install the versions of CUDA, cuDNN and TensorRT that it was built for",
            )
        return session


class TensorRtProviderRunner(CudaRunner):
    """An ONNX file on the TensorRT provider, with the CUDA provider for what it does not take."""

    provider: ClassVar[str] = TENSORRT

    def _providers(self, stream: int, stack: ExitStack) -> Providers:
        if self._options.cache is None:
            cache = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgekit-")))
        else:
            cache = self._options.cache / "onnxruntime-tensorrt"
            cache.mkdir(parents=True, exist_ok=True)
        nodes = read_onnx_graph(self._path).nodes
        int8 = any(node.op_type in _QUANTIZING for node in nodes)
        graph = self._options.cuda_graph
        return [
            tensorrt_provider(stream, cache, int8=int8, cuda_graph=graph),
            cuda_provider(stream, cuda_graph=False),
            (CPU, {}),
        ]
