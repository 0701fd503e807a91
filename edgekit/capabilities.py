"""What processors and runtimes can do with INT8 and INT4, in words for the user."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

X86 = ("x86_64", "AMD64", "i386", "i686")
ARM = ("aarch64", "arm64")
_VNNI = {"avx512_vnni", "avx_vnni"}
_TENSOR_CORES = 75  # compute capability from which TensorRT has INT8 Tensor Cores


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a processor or runtime is worth for integer networks, one sentence each."""

    int8: str
    int4: str

    def to_dict(self) -> dict[str, str]:
        """Return plain JSON values."""
        return {"int8": self.int8, "int4": self.int4}


_CPU_INT4 = (
    "4-bit weights of matrix products save memory, seldom time; "
    "convolutions have no 4-bit kernels on any CPU"
)


def cpu_meaning(machine: str, flags: Collection[str]) -> Meaning:
    """Describe a CPU.

    Args:
        machine: architecture, as ``platform.machine()`` calls it.
        flags: instruction sets, as ``/proc/cpuinfo`` calls them.
    """
    return Meaning(_cpu_int8(machine, set(flags)), _CPU_INT4)


def _cpu_int8(machine: str, flags: set[str]) -> str:
    if machine in ARM:
        if "asimddp" in flags:
            return "full speed: it has 8-bit dot products, and sums cannot saturate"
        return "exact, but slow: it has no 8-bit dot product (asimddp)"
    if machine not in X86:
        return f"unknown: edgekit knows nothing about '{machine}'"
    if "amx_int8" in flags:
        return "full speed: AMX multiplies 8-bit tiles, and sums cannot saturate"
    if flags & _VNNI:
        return "full speed: VNNI has 8-bit dot products, and sums cannot saturate"
    if flags & {"avx2", "avx512f"}:
        return (
            "faster than float, but less so than with VNNI: products are summed in 16 bits. They "
            "could saturate; edgekit keeps them in range (--cpu avx2, the default)"
        )
    return "seldom faster than float: it has neither AVX2 nor VNNI"


def gpu_meaning(compute_capability: int) -> Meaning:
    """Describe an NVIDIA GPU.

    Args:
        compute_capability: major and minor number in one, such as 87.
    """
    if compute_capability < _TENSOR_CORES:
        return Meaning(
            "none: it has no INT8 Tensor Cores, and current TensorRT releases do not support it",
            "none",
        )
    return Meaning(
        "full speed: it has INT8 Tensor Cores",
        "4-bit weights of matrix products, computed in FP16: they save memory; "
        "convolutions have no 4-bit kernels",
    )


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides which runtimes make sense: architecture, GPUs by name, name of the board."""

    architecture: str
    gpus: tuple[str, ...] = ()
    board: str | None = None


@dataclass(frozen=True, slots=True)
class _Runtime:
    """What is known of a runtime; ``source`` is an extra or a sentence, ``None`` if of no use."""

    meaning: Callable[[Machine], Meaning]
    source: Callable[[Machine], Source | None]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a runtime comes from: an extra of edgekit, or else a sentence that says it."""

    extra: str | None = None
    text: str | None = None


def runtime_meaning(runtime: str, machine: Machine) -> Meaning:
    """Describe what a runtime, by its key in the registry, does with integers on a machine."""
    return _RUNTIMES[runtime].meaning(machine)


def runtime_source(runtime: str, machine: Machine) -> Source | None:
    """Return where to get a runtime, or ``None`` where it would be of no use."""
    return _RUNTIMES[runtime].source(machine)


_NARROW_CODES = "scheme w4a8: 4-bit weights in the file, unpacked at load for the INT8 kernels"


def _openvino_meaning(machine: Machine) -> Meaning:
    int4 = f"{_NARROW_CODES}; alone, weights of matrix products stay 4-bit, computed in float"
    if machine.architecture in ARM:
        return Meaning("a smaller file only: on ARM it computes INT8 networks in float", int4)
    return Meaning("integer kernels for convolutions and matrix products", int4)


def _tensorrt_source(machine: Machine) -> Source | None:
    if not machine.gpus:
        return None
    if machine.board is not None:
        return Source(
            text="TensorRT comes with JetPack (package python3-libnvinfer); a virtual environment "
            "sees it if made with --system-site-packages"
        )
    # The wheels for RTX are a tenth of the size, and run on the GPUs that people have at home.
    return Source("tensorrt-rtx" if all("RTX" in gpu for gpu in machine.gpus) else "tensorrt")


_RUNTIMES: Mapping[str, _Runtime] = {
    "onnxruntime": _Runtime(
        lambda _: Meaning(
            "integer kernels for convolutions and matrix products on x86 and ARM",
            f"{_NARROW_CODES}; alone, weights of matrix products stay 4-bit (MatMulNBits)",
        ),
        lambda _: Source("onnxruntime"),
    ),
    "openvino": _Runtime(
        _openvino_meaning,
        lambda machine: None if machine.architecture in ARM else Source("openvino"),
    ),
    "tensorrt": _Runtime(
        lambda _: Meaning(
            "integer kernels on GPUs with INT8 Tensor Cores (compute capability 7.5 and later)",
            "weights of matrix products only, computed in FP16",
        ),
        _tensorrt_source,
    ),
}
