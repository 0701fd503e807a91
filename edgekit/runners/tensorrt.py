"""Runs TensorRT engines: standard TensorRT 10 and 11, and TensorRT for RTX, whose API is one.

An engine file is called ``engine*.plan``; ``.rtx`` in its name says that TensorRT for RTX built
it, ``.sm86`` that it runs on that compute capability only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgekit.errors import (
    ConfigError,
    LoadError,
    UnsupportedError,
    VerificationError,
    require,
)
from edgekit.runners.cuda import CudaDevice
from edgekit.runners.run_options import RunOptions, Setup
from edgekit.runners.tensorrt_layers import executed_layers
from edgekit.runners.tensors import TensorInfo, check_feeds
from edgekit.types import ExecutedLayer

_SUFFIX = ".plan"
_CAPABILITY = re.compile(r"sm(\d+)")
_PACKAGES = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}  # import name to extra


_Placed = Mapping[str, tuple[np.ndarray, int]]
"""Name of a tensor to its array on the host and its address on the device."""


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine file and what its name says about it."""

    path: Path
    package: str
    compute_capability: int | None

    @classmethod
    def of(cls, path: Path) -> Engine:
        """Read the parts of the file name."""
        parts = path.name.split(".")
        found = [match for match in map(_CAPABILITY.fullmatch, parts) if match]
        package = "tensorrt_rtx" if "rtx" in parts else "tensorrt"
        return cls(path, package, int(found[0].group(1)) if found else None)


class TensorRtRunner:
    """An engine on the first GPU.

    Args:
        model_path: an engine file, or the ONNX file that has its engines beside it; of these the
            one is taken that fits the GPU and an installed TensorRT.
        threads: accepted like every runner's; a GPU has no use for it.
    """

    suffixes: ClassVar[tuple[str, ...]] = (_SUFFIX,)

    def __init__(self, model_path: Path, *, threads: int | None = None) -> None:
        self._path = model_path
        self._threads = threads
        self._device: CudaDevice | None = None
        self._trt: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._inputs: tuple[TensorInfo, ...] = ()
        self._outputs: tuple[str, ...] = ()
        self._options = RunOptions()
        self._launch: Callable[[], object] | None = None

    @staticmethod
    def describe() -> dict[str, Any]:
        """Return the versions of the TensorRT packages; its devices are the machine's GPUs.

        Raises:
            MissingDependencyError: neither is installed.
        """
        here = [package for package in _PACKAGES if find_spec(package) is not None]
        modules = [require(name, extra=_PACKAGES[name]) for name in here or list(_PACKAGES)]
        return {"versions": {m.__name__: str(m.__version__) for m in modules}, "devices": None}

    def __enter__(self) -> TensorRtRunner:
        self._device = CudaDevice()
        try:
            engine, self._trt = select_engine(self._path, self._device.compute_capability)
            self._path = engine.path
            self._deserialize()
        except BaseException:
            self.__exit__()
            raise
        return self

    def tune(self, options: RunOptions) -> None:
        """Take the choice of copies and of a CUDA graph."""
        self._options = options

    @property
    def setup(self) -> Setup:
        """The GPU, and the choices."""
        return Setup("cuda", self._options.copies, self._options.cuda_graph)

    def __exit__(self, *exc: object) -> None:
        # TensorRT's objects use the CUDA context until they are gone.
        self._launch = None
        self._context = None
        self._engine = None
        if self._device is not None:
            self._device.close()
            self._device = None

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The engine's inputs."""
        return self._inputs

    @property
    def versions(self) -> dict[str, str]:
        """Version of the TensorRT package that runs the engine."""
        return {str(self._trt.__name__): str(self._trt.__version__)}

    def infer(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once: input name to array, output name to array.

        Raises:
            ConfigError: the feeds do not fit the inputs or their optimization profile.
            VerificationError: TensorRT or the CUDA driver failed while running.
        """
        device = self._opened()
        _sent, received = self._place(device, feeds)
        self._enqueue()
        for array, address in received.values():
            device.download(array, address)
        device.synchronize()
        return {name: array for name, (array, _) in received.items()}

    def bind(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """Check the feeds and return a call that copies, runs, copies back and synchronizes.

        Without copies the inputs lie on the device already, and the outputs stay there.

        Raises:
            ConfigError: as :meth:`infer`.
        """
        device = self._opened()
        sent, received = self._place(device, feeds)
        launch = self._recorded(device) if self._options.cuda_graph else self._enqueue
        self._launch = launch
        results = {name: array for name, (array, _) in received.items()}

        def run() -> dict[str, np.ndarray]:
            for array, address in sent.values():
                device.upload(address, array)
            launch()
            for array, address in received.values():
                device.download(array, address)
            device.synchronize()
            return results

        def run_in_place() -> None:
            launch()
            device.synchronize()

        return run if self._options.copies else run_in_place

    def device_times(self, runs: int) -> list[float]:
        """Return the milliseconds of the device for each of some runs of what was bound."""
        device = self._opened()
        if self._launch is None:
            raise RuntimeError("nothing is bound: call bind first")
        return [device.elapsed_ms(self._launch) for _ in range(runs)]

    def executed_layers(self) -> list[ExecutedLayer]:
        """List the engine's weighted layers."""
        self._opened()
        inspector = self._engine.create_engine_inspector()
        text = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        return executed_layers(text)

    def _place(
        self, device: CudaDevice, feeds: Mapping[str, np.ndarray]
    ) -> tuple[_Placed, _Placed]:
        """Put the feeds on the device, and return inputs and outputs, each with its address."""
        sent: dict[str, tuple[np.ndarray, int]] = {}
        for name, array in check_feeds(feeds, self._inputs, f"'{self._path}'").items():
            if not self._context.set_input_shape(name, array.shape):
                raise ConfigError(
                    f"'{self._path}': input '{name}' of {list(array.shape)} is outside of what "
                    "the engine was built for"
                )
            sent[name] = (array, device.buffer(name, array.nbytes))
            self._context.set_tensor_address(name, sent[name][1])
            device.upload(sent[name][1], array)
        device.synchronize()
        received = {}
        for name in self._outputs:
            array = self._allocate(device, name)
            received[name] = (array, device.buffer(name, array.nbytes))
        return sent, received

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._opened().stream):
            raise VerificationError(f"TensorRT failed on '{self._path}'")

    def _recorded(self, device: CudaDevice) -> Callable[[], None]:
        """Record the engine as a CUDA graph, after a run outside of it, as TensorRT demands."""
        self._enqueue()
        device.synchronize()
        return device.capture(self._enqueue)

    def _allocate(self, device: CudaDevice, name: str) -> np.ndarray:
        shape = tuple(self._context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise UnsupportedError(
                f"'{self._path}': the size of output '{name}' is known only after running"
            )
        array = np.empty(shape, dtype=self._trt.nptype(self._engine.get_tensor_dtype(name)))
        self._context.set_tensor_address(name, device.buffer(name, array.nbytes))
        return array

    def _opened(self) -> CudaDevice:
        if self._device is None or self._context is None:
            raise RuntimeError("the runner is not open: use it as a context manager")
        return self._device

    def _deserialize(self) -> None:
        trt = self._trt
        try:
            plan = self._path.read_bytes()
        except OSError as error:
            raise LoadError(f"'{self._path}' cannot be read: {error.strerror}") from error
        runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise UnsupportedError(
                f"{trt.__name__} {trt.__version__} cannot load '{self._path}' on this GPU",
                "an engine runs only on the TensorRT version and GPU architecture it was built "
                "for: build it again here from the ONNX file",
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise UnsupportedError(
                f"'{self._path}': no execution context; is the GPU's memory full?"
            )
        self._read_tensors()

    def _read_tensors(self) -> None:
        engine, trt = self._engine, self._trt
        names = [str(engine.get_tensor_name(i)) for i in range(engine.num_io_tensors)]
        inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        self._outputs = tuple(name for name in names if name not in inputs)
        self._inputs = tuple(
            TensorInfo(
                name,
                np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name,
                tuple(None if size < 0 else int(size) for size in engine.get_tensor_shape(name)),
            )
            for name in inputs
        )


def select_engine(model_path: Path, compute_capability: int) -> tuple[Engine, Any]:
    """Choose the engine that this machine can run, and import its TensorRT.

    Args:
        model_path: an engine file, or a file with engines beside it.
        compute_capability: of the GPU, such as 86.

    Raises:
        UnsupportedError: there is no engine, or none for this GPU.
        MissingDependencyError: there is one, but the TensorRT that runs it is not installed.
    """
    if model_path.suffix == _SUFFIX:
        paths = [model_path]
    else:
        paths = sorted(model_path.parent.glob(f"engine*{_SUFFIX}"))
    engines = [Engine.of(path) for path in paths]
    hint = f"build one on this machine, for SM{compute_capability}, from the ONNX file"
    if not engines:
        raise UnsupportedError(f"'{model_path.parent}' holds no TensorRT engine", hint)
    fitting = [e for e in engines if e.compute_capability in (None, compute_capability)]
    if not fitting:
        held = ", ".join(path.name for path in paths)
        raise UnsupportedError(f"no engine for SM{compute_capability} among {held}", hint)
    # With none of them installed, the first one's package is the one to ask for.
    engine = next((e for e in fitting if find_spec(e.package) is not None), fitting[0])
    return engine, require(engine.package, extra=_PACKAGES[engine.package])
