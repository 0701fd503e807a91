from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgekit.errors import ConfigError
from edgekit.runners.onnxruntime import OnnxRuntimeRunner
from edgekit.runners.tensors import TensorInfo, check_feeds, infer_batches, infer_runs

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

# Slices of another size may run other kernels, whose float sums differ by rounding: as in
# test_onnxruntime, 72 products up to 6.4.
FLOAT_TOLERANCE = 3e-5


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_slices_of_a_dynamic_batch_join_in_order(qdq_network: Any, batch_size: int) -> None:
    x = qdq_network.inputs(5)
    with OnnxRuntimeRunner(qdq_network.path) as runner:
        y = infer_batches(runner, {"x": x}, batch_size)["y"]
    np.testing.assert_allclose(y, qdq_network.reference(x), rtol=0, atol=FLOAT_TOLERANCE)


def test_a_fixed_batch_overrules_the_batch_size(qdq_network: Any) -> None:
    x = qdq_network.inputs(3)
    with OnnxRuntimeRunner(qdq_network.static_path) as runner:
        with pytest.raises(
            ConfigError, match=r"float32 \[1, 3, 8, 8\], got float32 \[3, 3, 8, 8\]"
        ):
            runner.infer({"x": x})
        y = infer_batches(runner, {"x": x}, 8)["y"]
    np.testing.assert_allclose(y, qdq_network.reference(x), rtol=0, atol=FLOAT_TOLERANCE)


def test_samples_must_fill_slices(qdq_network: Any) -> None:
    with OnnxRuntimeRunner(qdq_network.path) as runner:
        with pytest.raises(ConfigError, match="batch size must be at least 1"):
            infer_batches(runner, {"x": qdq_network.inputs(1)}, 0)
        with pytest.raises(ConfigError, match="one common number of samples"):
            infer_batches(runner, {"x": qdq_network.inputs(1)[:0]}, 1)
        with pytest.raises(ConfigError, match="one common number of samples"):
            infer_batches(runner, {"x": qdq_network.inputs(1), "z": np.zeros(2)}, 1)


def test_runs_are_stacked_along_an_axis_of_their_own(qdq_network: Any) -> None:
    x = qdq_network.inputs(6)
    with OnnxRuntimeRunner(qdq_network.path) as runner:
        y = infer_runs(runner, {"x": x.reshape(3, 2, 3, 8, 8)})["y"]
        with pytest.raises(ConfigError, match="one common number of runs"):
            infer_runs(runner, {"x": x[:0]})
    assert y.shape == (3, 2, 4, 8, 8)
    expected = qdq_network.reference(x).reshape(y.shape)
    np.testing.assert_allclose(y, expected, rtol=0, atol=FLOAT_TOLERANCE)


def test_feeds_come_back_contiguous_and_in_order() -> None:
    inputs = (TensorInfo("b", "int64", (None,)), TensorInfo("a", "float32", (2, 3)))
    a = np.arange(6, dtype=np.float32).reshape(3, 2).T
    checked = check_feeds({"a": a, "b": np.array([1])}, inputs, "here")
    assert list(checked) == ["b", "a"]
    assert checked["a"].flags.c_contiguous
    np.testing.assert_array_equal(checked["a"], a)
