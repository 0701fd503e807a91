"""NVIDIA GPUs as the CUDA driver library lists them, without making a context on any."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from edgekit.errors import UnsupportedError
from edgekit.runners.cuda import LIBRARY

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{MAJOR,MINOR} of cuda.h
_NAME_BYTES = 256
_FUNCTIONS = (
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceTotalMem_v2",
    "cuDeviceGetAttribute",
)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU; ``cuda_version`` is the newest that its driver supports, such as ``"12.6"``."""

    name: str
    compute_capability: int
    memory_bytes: int
    cuda_version: str


def list_gpus(library: str = LIBRARY) -> list[Gpu]:
    """Return the GPUs of this machine.

    Args:
        library: file name of the driver library.

    Raises:
        UnsupportedError: there is no driver, or it finds no GPU.
    """
    try:
        driver = ctypes.CDLL(library)
        functions = {name: getattr(driver, name) for name in _FUNCTIONS}
    except (OSError, AttributeError) as error:
        raise UnsupportedError(f"no NVIDIA driver on this machine ({error})") from error

    def call(name: str, *arguments: object) -> None:
        code = functions[name](*arguments)
        if code != 0:
            raise UnsupportedError(f"the NVIDIA driver finds no GPU: {name} failed with {code}")

    def number(name: str, *arguments: object) -> int:
        value = ctypes.c_int()
        call(name, ctypes.byref(value), *arguments)
        return value.value

    call("cuInit", 0)
    version = number("cuDriverGetVersion")
    found = []
    for index in range(number("cuDeviceGetCount")):
        device = number("cuDeviceGet", index)
        name, size = ctypes.create_string_buffer(_NAME_BYTES), ctypes.c_size_t()
        call("cuDeviceGetName", name, _NAME_BYTES, device)
        call("cuDeviceTotalMem_v2", ctypes.byref(size), device)
        major, minor = (number("cuDeviceGetAttribute", a, device) for a in (_MAJOR, _MINOR))
        found.append(
            Gpu(
                name.value.decode("utf-8", "replace"),
                10 * major + minor,
                size.value,
                f"{version // 1000}.{version % 1000 // 10}",
            )
        )
    return found
