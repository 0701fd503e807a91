from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import ConfigError, LoadError
from edgekit.runners.onnxruntime import OnnxRuntimeRunner
from edgekit.runners.tensors import TensorInfo
from edgekit.types import ExecutedLayer

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

# The integer layer is exact (see conftest); the float convolution sums 72 products of values up
# to 8 * 0.8, each rounded to 24 bits: 72 * 6.4 * 2**-24 = 3e-5.
FLOAT_TOLERANCE = 3e-5


@pytest.mark.parametrize("options", [{}, {"threads": 1}, {"disable_quant_qdq": True}], ids=str)
def test_outputs_are_those_of_exact_arithmetic(qdq_network: Any, options: dict[str, Any]) -> None:
    x = qdq_network.inputs(3)
    with OnnxRuntimeRunner(qdq_network.path, **options) as runner:
        outputs = runner.infer({"x": x})
    assert list(outputs) == ["y"]
    np.testing.assert_allclose(outputs["y"], qdq_network.reference(x), rtol=0, atol=FLOAT_TOLERANCE)


def test_executed_precision_is_read_from_the_optimized_graph(qdq_network: Any) -> None:
    with OnnxRuntimeRunner(qdq_network.path) as runner:
        layers = runner.executed_layers()
    assert layers[0] == ExecutedLayer("conv_int", "QLinearConv", "int8")
    assert (layers[1].name, layers[1].precision) == ("conv_float", "float32")
    assert len(layers) == 2


def test_simulation_runs_both_layers_in_float(qdq_network: Any) -> None:
    with OnnxRuntimeRunner(qdq_network.path, disable_quant_qdq=True) as runner:
        layers = runner.executed_layers()
    assert [(layer.name, layer.precision) for layer in layers] == [
        ("conv_int", "float32"),
        ("conv_float", "float32"),
    ]


def test_reading_precision_leaves_no_file_behind(
    qdq_network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = sorted(qdq_network.path.parent.iterdir())
    with OnnxRuntimeRunner(qdq_network.path) as runner:
        runner.executed_layers()
    assert sorted(qdq_network.path.parent.iterdir()) == before
    assert list(tmp_path.iterdir()) == []


def test_inputs_tell_fixed_and_free_axes(qdq_network: Any) -> None:
    with OnnxRuntimeRunner(qdq_network.path) as runner:
        assert runner.inputs == (TensorInfo("x", "float32", (None, 3, 8, 8)),)
    with OnnxRuntimeRunner(qdq_network.static_path) as runner:
        assert runner.inputs == (TensorInfo("x", "float32", (1, 3, 8, 8)),)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, r"expected the inputs \['x'\], got \[\]"),
        ({"z": np.zeros((1, 3, 8, 8), np.float32)}, r"got \['z'\]"),
        ({"x": np.zeros((1, 3, 8, 8), np.float64)}, r"float32 \[\?, 3, 8, 8\], got float64"),
        ({"x": np.zeros((1, 3, 8, 9), np.float32)}, r"got float32 \[1, 3, 8, 9\]"),
        ({"x": np.zeros((3, 8, 8), np.float32)}, r"got float32 \[3, 8, 8\]"),
    ],
    ids=["missing", "unknown", "dtype", "size", "rank"],
)
def test_wrong_feeds_are_named(
    qdq_network: Any, feeds: dict[str, np.ndarray], message: str
) -> None:
    with OnnxRuntimeRunner(qdq_network.path) as runner, pytest.raises(ConfigError, match=message):
        runner.infer(feeds)


@pytest.mark.parametrize("content", [b"", b"hello"], ids=["empty", "garbage"])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(LoadError, match="ONNX Runtime cannot open"), OnnxRuntimeRunner(path):
        pass


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "absent.onnx"
    with pytest.raises(LoadError, match=r"absent\.onnx"), OnnxRuntimeRunner(path):
        pass


def test_a_closed_runner_refuses_to_infer(qdq_network: Any) -> None:
    runner = OnnxRuntimeRunner(qdq_network.path)
    with pytest.raises(RuntimeError, match="not open"):
        runner.infer({"x": qdq_network.inputs(1)})
    with runner:
        pass
    with pytest.raises(RuntimeError, match="not open"):
        runner.infer({"x": qdq_network.inputs(1)})
