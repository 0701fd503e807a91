"""Times the float network in torch, on the CPU or an NVIDIA GPU, eagerly or compiled.

The network comes from the user's own file, opened by :mod:`edgekit.loading` under the same rules as
for quantization. Torch is imported only where a runner is used, which is a process of its own.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgekit.errors import UnsupportedError, VerificationError, require
from edgekit.options import InputOption
from edgekit.runners.run_options import RunOptions, Setup
from edgekit.runners.tensors import TensorInfo, check_feeds
from edgekit.types import ExecutedLayer

if TYPE_CHECKING:
    import torch
    from torch import nn

_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_WARM_RUNS = 3  # before a CUDA graph is recorded: libraries choose kernels and allocate in these


class TorchRunner:
    """A file with a network, in eager mode on the CPU.

    Args:
        model_path: what ``edgekit quantize`` takes.
        threads: intra-operator threads; torch's own choice if ``None``.
    """

    suffixes: ClassVar[tuple[str, ...]] = (
        ".pt",
        ".pth",
        ".pt2",
        ".ckpt",
        ".safetensors",
    )
    device: ClassVar[str] = "cpu"
    dtype: ClassVar[str] = "float32"
    compiled: ClassVar[bool] = False

    def __init__(self, model_path: Path, *, threads: int | None = None) -> None:
        self._path = model_path
        self._threads = threads
        self._options = RunOptions()
        self._stack = ExitStack()
        self._inputs: tuple[TensorInfo, ...] = ()
        self._network: Callable[..., Any] | None = None
        self._enqueue: Callable[[], object] | None = None

    @staticmethod
    def describe() -> dict[str, Any]:
        """Return the version of torch and its devices: ``cpu``, and the names of GPUs."""
        torch = require("torch", extra="torch")
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return {"versions": {"torch": str(torch.__version__)}, "devices": ["cpu", *gpus]}

    def tune(self, options: RunOptions) -> None:
        """Take what opens the file, and the choice of copies and of a CUDA graph."""
        self._options = options

    @property
    def setup(self) -> Setup:
        """Device and choices."""
        chosen = {"dtype": self.dtype, "compiled": str(self.compiled).lower()}
        if self.device == "cpu":
            return Setup(options=chosen)
        return Setup(self.device, self._options.copies, self._options.cuda_graph, chosen)

    def __enter__(self) -> TorchRunner:
        torch = require("torch", extra="torch")
        self._check_machine(torch)
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        with ExitStack() as stack:
            module = self._load().to(self.device, getattr(torch, self.dtype))
            stack.enter_context(torch.inference_mode())
            self._network = self._compile(torch, module) if self.compiled else module
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._network = self._enqueue = None
        self._stack.close()

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The network's inputs; the batch is of any size."""
        return self._inputs

    @property
    def versions(self) -> dict[str, str]:
        """Version of torch."""
        return {"torch": str(require("torch", extra="torch").__version__)}

    def infer(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once: input name to array; outputs are called ``output_0`` and so on, in float32.

        Raises:
            ConfigError: the feeds do not fit the inputs.
            VerificationError: torch failed while running.
        """
        tensors = self._tensors(feeds)
        network = self._opened()
        try:
            found = _flat(network(*tensors))
        except RuntimeError as error:
            raise VerificationError(f"torch failed on '{self._path}': {error}") from error
        return {
            f"output_{number}": value.float().cpu().numpy()
            if value.is_floating_point()
            else value.cpu().numpy()
            for number, value in enumerate(found)
        }

    def bind(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """Check the feeds and return a call of the network on them.

        On a GPU the call copies inputs and outputs, unless that is not wanted, and waits.

        Raises:
            ConfigError: the feeds do not fit the inputs.
        """
        network, tensors = self._opened(), self._tensors(feeds)

        def run() -> object:
            return network(*tensors)

        self._enqueue = run
        return run if self.device == "cpu" else self._bind_cuda(run, tensors, feeds)

    def device_times(self, runs: int) -> list[float] | None:
        """Return the milliseconds of the GPU for each of some runs of what was bound."""
        if self.device == "cpu" or self._enqueue is None:
            return None
        torch = require("torch", extra="torch")
        times = []
        for _ in range(runs):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            self._enqueue()
            end.record()
            end.synchronize()
            times.append(float(begin.elapsed_time(end)))
        return times

    def executed_layers(self) -> list[ExecutedLayer]:
        """Return nothing: the network runs in float as it is."""
        return []

    def _load(self) -> nn.Module:
        from edgekit.loading import load

        network = self._options.network
        if self._options.folder is not None and str(self._options.folder) not in sys.path:
            sys.path.append(str(self._options.folder))
        loaded = load(
            self._path,
            arch=network.arch,
            inputs=[
                InputOption(spec.name, spec.shape, spec.dtype, spec.variable_axes, spec.multiple)
                for spec in network.inputs
            ],
            trust_pickle=network.trust_pickle,
            weights=network.weights,
        )
        self._inputs = tuple(
            TensorInfo(
                spec.name,
                spec.dtype,
                (None if spec.dynamic_batch else spec.shape[0], *spec.shape[1:]),
            )
            for spec in loaded.inputs
        )
        return loaded.module

    def _check_machine(self, torch: Any) -> None:
        if self.device == "cuda" and not torch.cuda.is_available():
            built = "was built without CUDA" if torch.version.cuda is None else "finds no GPU"
            raise UnsupportedError(
                f"torch {torch.__version__} {built}",
                "run this on a machine with an NVIDIA GPU, with a build of torch for CUDA",
            )
        if self.dtype == "bfloat16" and not torch.cuda.is_bf16_supported():
            raise UnsupportedError("this GPU has no bfloat16", "use torch-half")
        compilers = (os.environ.get("CXX"), "g++", "clang++", "c++")
        if self.compiled and not any(name and shutil.which(name) for name in compilers):
            raise UnsupportedError(
                "torch.compile needs a C++ compiler, and finds none", "install g++"
            )

    def _compile(self, torch: Any, module: nn.Module) -> Callable[..., Any]:
        if self._options.cache is not None:  # blocks after the first find their kernels there
            os.environ.setdefault(_CACHE_VARIABLE, str(self._options.cache / "torch"))
        compiled: Callable[..., Any] = torch.compile(module)
        return compiled

    def _bind_cuda(
        self,
        run: Callable[[], object],
        tensors: list[torch.Tensor],
        feeds: Mapping[str, np.ndarray],
    ) -> Callable[[], object]:
        torch = require("torch", extra="torch")
        host = [torch.from_numpy(feeds[info.name]) for info in self._inputs]
        launch = _recorded(torch, run) if self._options.cuda_graph else run
        self._enqueue = launch

        def with_copies() -> object:
            for there, here in zip(tensors, host, strict=True):
                there.copy_(here)
            return [value.cpu() for value in _flat(launch())]

        def in_place() -> object:
            found = launch()
            torch.cuda.synchronize()
            return found

        return with_copies if self._options.copies else in_place

    def _tensors(self, feeds: Mapping[str, np.ndarray]) -> list[torch.Tensor]:
        torch = require("torch", extra="torch")
        found = []
        for array in check_feeds(feeds, self._inputs, f"'{self._path}'").values():
            tensor = torch.from_numpy(array).to(self.device)
            found.append(
                tensor.to(getattr(torch, self.dtype)) if tensor.is_floating_point() else tensor
            )
        return found

    def _opened(self) -> Callable[..., Any]:
        if self._network is None:
            raise RuntimeError("the runner is not open: use it as a context manager")
        return self._network


class CompiledRunner(TorchRunner):
    """The same after ``torch.compile``."""

    compiled: ClassVar[bool] = True


class CudaRunner(TorchRunner):
    """The network in float32 on the first GPU."""

    device: ClassVar[str] = "cuda"


class CompiledCudaRunner(CudaRunner):
    """The same after ``torch.compile``."""

    compiled: ClassVar[bool] = True


class HalfRunner(CudaRunner):
    """The network in float16 on the first GPU; its inputs come and go in their own type."""

    dtype: ClassVar[str] = "float16"


class CompiledHalfRunner(HalfRunner):
    """The same after ``torch.compile``."""

    compiled: ClassVar[bool] = True


class BFloat16Runner(CudaRunner):
    """The network in bfloat16 on the first GPU."""

    dtype: ClassVar[str] = "bfloat16"


def _recorded(torch: Any, run: Callable[[], object]) -> Callable[[], object]:
    """Record what a call does as a CUDA graph, and return a call that replays it.

    The tensors that it reads and returns stay at their addresses.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_RUNS):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()

    def replay() -> object:
        graph.replay()
        return found

    return replay


def _flat(value: Any) -> list[torch.Tensor]:
    """Return the tensors in a network's result, in their order."""
    torch = require("torch", extra="torch")
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value
    if not isinstance(value, Mapping | list | tuple):
        return []
    return [tensor for part in parts for tensor in _flat(part)]
