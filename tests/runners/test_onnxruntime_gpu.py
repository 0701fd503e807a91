"""The GPU providers of ONNX Runtime: options as data, reasons, and binding on a real session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import UnsupportedError
from edgekit.runners import open_model
from edgekit.runners.onnxruntime_binding import bind_on_device
from edgekit.runners.onnxruntime_gpu import CUDA, TENSORRT, cuda_provider, tensorrt_provider
from edgekit.runners.run_options import RunOptions

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


def test_options_of_the_cuda_provider() -> None:
    plain = {"device_id": "0", "user_compute_stream": "77"}
    assert cuda_provider(77, cuda_graph=False) == (CUDA, plain)
    assert cuda_provider(77, cuda_graph=True) == (CUDA, {**plain, "enable_cuda_graph": "1"})


def test_options_of_the_tensorrt_provider() -> None:
    name, options = tensorrt_provider(77, Path("cache"), int8=True, cuda_graph=True)
    assert name == TENSORRT
    assert options == {
        "device_id": "0",
        "user_compute_stream": "77",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "cache",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": "cache",
        "trt_int8_enable": "1",
        "trt_cuda_graph_enable": "1",
    }
    _, floating = tensorrt_provider(77, Path("cache"), int8=False, cuda_graph=False)
    assert {"trt_int8_enable", "trt_cuda_graph_enable"}.isdisjoint(floating)


@pytest.mark.parametrize(
    ("target", "provider"), [("onnxruntime-cuda", CUDA), ("onnxruntime-tensorrt", TENSORRT)]
)
def test_package_without_the_provider_is_named(
    qdq_network: Any, target: str, provider: str
) -> None:
    if provider in onnxruntime.get_available_providers():
        pytest.skip(f"this ONNX Runtime has {provider}")
    with (
        pytest.raises(UnsupportedError, match=f"has no {provider}, only .*CPU") as caught,
        open_model(target, qdq_network.path),
    ):
        pass
    assert "onnxruntime-gpu" in caught.value.hint


@pytest.mark.parametrize("target", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_without_a_driver_the_reason_is_the_driver(
    qdq_network: Any, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, TENSORRT])
    monkeypatch.setattr(
        "edgekit.runners.cuda.CudaDevice.__init__.__defaults__", ("no-such-libcuda.so",)
    )
    with (
        pytest.raises(UnsupportedError, match="no NVIDIA driver"),
        open_model(target, qdq_network.path, options=RunOptions()),
    ):
        pass


def test_bound_session_computes_in_place(qdq_network: Any) -> None:
    """On the CPU, whose memory takes the place of the GPU's: the same calls, real kernels."""
    session = onnxruntime.InferenceSession(
        str(qdq_network.path), providers=["CPUExecutionProvider"]
    )
    x = qdq_network.inputs(2)
    (expected,) = session.run(None, {"x": x})
    bound = bind_on_device(session, {"x": x}, {"y": expected}, "cpu")
    np.testing.assert_array_equal(bound.received["y"].numpy(), np.zeros_like(expected))
    for run in (bound.run, bound.enqueue):
        run()
        np.testing.assert_array_equal(bound.received["y"].numpy(), expected)
        bound.received["y"].update_inplace(np.zeros_like(expected))
    x[:] = qdq_network.inputs(3)[:2]  # copies take what lies there now
    (changed,) = session.run(None, {"x": x})
    assert not np.array_equal(changed, expected)
    np.testing.assert_array_equal(bound.run_with_copies()[0], changed)
