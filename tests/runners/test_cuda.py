from __future__ import annotations

import ctypes

import numpy as np
import pytest

from edgekit.errors import UnsupportedError, VerificationError
from edgekit.runners.cuda import CudaDevice


def test_without_a_driver_the_error_says_so() -> None:
    with pytest.raises(UnsupportedError, match="no NVIDIA driver on this machine") as caught:
        CudaDevice("libcuda-that-does-not-exist.so")
    assert "GPU" in caught.value.hint


def test_without_a_device_the_error_says_so(
    driver_library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_NO_DEVICE", "1")
    with pytest.raises(UnsupportedError, match=r"cuInit failed with 100 \(no device\)"):
        CudaDevice(driver_library)


def test_data_makes_the_round_trip(driver_library: str) -> None:
    device = CudaDevice(driver_library)
    sent = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    device.upload(device.buffer("x", sent.nbytes), sent)
    received = np.zeros_like(sent)
    device.download(received, device.buffer("x", sent.nbytes))
    device.synchronize()
    device.close()
    np.testing.assert_array_equal(received, sent)


def test_compute_capability_is_one_number(driver_library: str) -> None:
    device = CudaDevice(driver_library)
    assert device.compute_capability == 87
    device.close()


def test_buffers_grow_and_are_all_freed(driver_library: str) -> None:
    live = ctypes.CDLL(driver_library).standin_live_allocations
    device = CudaDevice(driver_library)
    small = device.buffer("x", 16)
    assert device.buffer("x", 8) == small
    device.buffer("x", 1 << 20)
    device.buffer("y", 0)
    assert live() == 2
    device.close()
    assert live() == 0


def test_a_full_device_is_named(driver_library: str) -> None:
    device = CudaDevice(driver_library)
    with pytest.raises(VerificationError, match=r"cuMemAlloc_v2 failed with 2 \(out of memory\)"):
        device.buffer("x", 1 << 31)
    device.close()


def test_events_read_the_clock_of_the_device(driver_library: str) -> None:
    device = CudaDevice(driver_library)
    sent = np.zeros(8, np.float32)
    address = device.buffer("x", sent.nbytes)

    def copy_twice() -> None:
        for _ in range(2):
            device.upload(address, sent)

    # The stand-in's clock goes on by a quarter of a millisecond with each copy to it.
    assert device.elapsed_ms(copy_twice) == pytest.approx(0.5)
    assert device.elapsed_ms(lambda: None) == 0.0
    device.close()
    assert ctypes.CDLL(driver_library).standin_live_handles() == 0


def test_recorded_work_runs_when_its_graph_is_launched(driver_library: str) -> None:
    device = CudaDevice(driver_library)
    sent = np.arange(4, dtype=np.float32)
    address = device.buffer("x", sent.nbytes)
    launch = device.capture(lambda: device.upload(address, sent))
    sent += 10  # what is copied is what lies there when the graph runs
    launch()
    received = np.zeros_like(sent)
    device.download(received, address)
    np.testing.assert_array_equal(received, [10, 11, 12, 13])
    assert device.elapsed_ms(launch) == pytest.approx(0.25)
    device.close()
    assert ctypes.CDLL(driver_library).standin_live_handles() == 0


def test_work_that_waits_cannot_be_recorded(driver_library: str) -> None:
    device = CudaDevice(driver_library)
    with pytest.raises(VerificationError, match="cuStreamSynchronize failed with 900"):
        device.capture(device.synchronize)
    device.close()
