"""Device memory and one stream through the CUDA driver library, by ctypes.

The driver library comes with the driver itself, on desktops and on Jetson alike, and keeps its
names across CUDA versions. So nothing has to be installed, and its absence is the plain answer to
"is there a GPU here?". TensorRT uses the device's primary context; so does this.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

import numpy as np

from edgekit.errors import UnsupportedError, VerificationError

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_NO_GPU_HINT = "run this on a machine with an NVIDIA GPU and its driver"

# Values of cuda.h.
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{MAJOR,MINOR}
_STREAM_NON_BLOCKING = 1

_Handle = ctypes.c_void_p
_Address = ctypes.c_uint64  # CUdeviceptr
_Device = ctypes.c_int


def _signatures() -> dict[str, tuple[type, ...]]:
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    return {
        "cuInit": (ctypes.c_uint,),
        "cuDeviceGet": (pointer, ctypes.c_int),
        "cuDeviceGetAttribute": (pointer, ctypes.c_int, _Device),
        "cuDevicePrimaryCtxRetain": (pointer, _Device),
        "cuDevicePrimaryCtxRelease_v2": (_Device,),
        "cuCtxSetCurrent": (_Handle,),
        "cuStreamCreate": (pointer, ctypes.c_uint),
        "cuStreamSynchronize": (_Handle,),
        "cuStreamDestroy_v2": (_Handle,),
        "cuMemAlloc_v2": (pointer, size),
        "cuMemFree_v2": (_Address,),
        "cuMemcpyHtoDAsync_v2": (_Address, pointer, size, _Handle),
        "cuMemcpyDtoHAsync_v2": (pointer, _Address, size, _Handle),
        "cuGetErrorString": (ctypes.c_int, pointer),
    }


class CudaDevice:
    """The first GPU: named buffers in its memory, and a stream. Close it after use.

    Args:
        library: file name of the driver library.

    Raises:
        UnsupportedError: there is no driver or no GPU.
    """

    def __init__(self, library: str = LIBRARY) -> None:
        try:
            self._library = ctypes.CDLL(library)
            for name, arguments in _signatures().items():
                function = getattr(self._library, name)
                function.argtypes = arguments
                function.restype = ctypes.c_int
        except (OSError, AttributeError) as error:
            raise UnsupportedError(
                f"no NVIDIA driver on this machine ({error})", _NO_GPU_HINT
            ) from error
        self._buffers: dict[str, tuple[int, int]] = {}
        self._device = _Device()
        context, stream = _Handle(), _Handle()
        try:
            self._call("cuInit", 0)
            self._call("cuDeviceGet", ctypes.byref(self._device), 0)
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
            self._call("cuCtxSetCurrent", context)
            self._call("cuStreamCreate", ctypes.byref(stream), _STREAM_NON_BLOCKING)
        except VerificationError as error:
            raise UnsupportedError(
                f"no usable NVIDIA GPU: {error.message}", _NO_GPU_HINT
            ) from error
        self._stream = stream

    @property
    def stream(self) -> int:
        """Handle of the stream, as TensorRT takes it."""
        return int(self._stream.value or 0)

    @property
    def compute_capability(self) -> int:
        """Major and minor number in one, such as 87 for Orin."""
        return 10 * self._attribute(_MAJOR) + self._attribute(_MINOR)

    def buffer(self, name: str, size_bytes: int) -> int:
        """Return the address of a buffer of at least ``size_bytes``, kept under ``name``."""
        address, capacity = self._buffers.get(name, (0, 0))
        if capacity >= size_bytes and address:
            return address
        if address:
            del self._buffers[name]
            self._call("cuMemFree_v2", address)
        fresh = _Address()
        self._call("cuMemAlloc_v2", ctypes.byref(fresh), max(size_bytes, 1))
        self._buffers[name] = (int(fresh.value), max(size_bytes, 1))
        return int(fresh.value)

    def upload(self, address: int, array: np.ndarray) -> None:
        """Start copying a contiguous array to the device; ``array`` must live until it is done."""
        self._call("cuMemcpyHtoDAsync_v2", address, array.ctypes.data, array.nbytes, self._stream)

    def download(self, array: np.ndarray, address: int) -> None:
        """Start copying device memory into a contiguous array."""
        self._call("cuMemcpyDtoHAsync_v2", array.ctypes.data, address, array.nbytes, self._stream)

    def synchronize(self) -> None:
        """Wait until everything on the stream is done."""
        self._call("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Release buffers, stream and context."""
        while self._buffers:
            _name, (address, _size) = self._buffers.popitem()
            self._call("cuMemFree_v2", address)
        self._call("cuStreamDestroy_v2", self._stream)
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _attribute(self, number: int) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), number, self._device)
        return int(value.value)

    def _call(self, name: str, *arguments: object) -> None:
        function: Callable[..., int] = getattr(self._library, name)
        code = function(*arguments)
        if code == 0:
            return
        text = ctypes.c_char_p()
        self._library.cuGetErrorString(code, ctypes.byref(text))
        reason = (text.value or b"unknown error").decode(errors="replace")
        raise VerificationError(f"CUDA driver: {name} failed with {code} ({reason})")
