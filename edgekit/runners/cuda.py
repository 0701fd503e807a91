"""Device memory, one stream, events and graphs through the CUDA driver library, by ctypes.

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
_EVENT_DEFAULT = 0  # records times
_CAPTURE_THREAD_LOCAL = 1  # other threads of a runtime may go on calling CUDA meanwhile

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
        "cuEventCreate": (pointer, ctypes.c_uint),
        "cuEventRecord": (_Handle, _Handle),
        "cuEventSynchronize": (_Handle,),
        "cuEventElapsedTime": (pointer, _Handle, _Handle),
        "cuEventDestroy_v2": (_Handle,),
        "cuStreamBeginCapture_v2": (_Handle, ctypes.c_int),
        "cuStreamEndCapture": (_Handle, pointer),
        "cuGraphInstantiateWithFlags": (pointer, _Handle, ctypes.c_ulonglong),
        "cuGraphLaunch": (_Handle, _Handle),
        "cuGraphExecDestroy": (_Handle,),
        "cuGraphDestroy": (_Handle,),
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
        self._graphs: list[_Handle] = []
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

    def elapsed_ms(self, work: Callable[[], object]) -> float:
        """Return how long the device takes for what ``work`` puts on the stream.

        Two events on the stream stand around it: the device reads its own clock at each.
        """
        events = [_Handle(), _Handle()]
        for event in events:
            self._call("cuEventCreate", ctypes.byref(event), _EVENT_DEFAULT)
        try:
            self._call("cuEventRecord", events[0], self._stream)
            work()
            self._call("cuEventRecord", events[1], self._stream)
            self._call("cuEventSynchronize", events[1])
            taken = ctypes.c_float()
            self._call("cuEventElapsedTime", ctypes.byref(taken), *events)
        finally:
            for event in events:
                self._call("cuEventDestroy_v2", event)
        return float(taken.value)

    def capture(self, work: Callable[[], object]) -> Callable[[], None]:
        """Record what ``work`` puts on the stream as a graph, and return a call that launches it.

        Raises:
            VerificationError: the work cannot be recorded, such as an allocation.
        """
        graph, executable = _Handle(), _Handle()
        self._call("cuStreamBeginCapture_v2", self._stream, _CAPTURE_THREAD_LOCAL)
        try:
            work()
        finally:
            self._call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        self._call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, 0)
        self._call("cuGraphDestroy", graph)
        self._graphs.append(executable)
        return lambda: self._call("cuGraphLaunch", executable, self._stream)

    def close(self) -> None:
        """Release graphs, buffers, stream and context."""
        while self._graphs:
            self._call("cuGraphExecDestroy", self._graphs.pop())
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
