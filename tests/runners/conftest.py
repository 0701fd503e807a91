"""A small network with one layer on integer kernels and one in float, and its exact arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

# Powers of two: every product and sum below is exact in float32, so that the integer layer has
# one right answer, whatever the order of summation.
INPUT_SCALE = 2.0**-6
WEIGHT_SCALE = 2.0**-5
OUTPUT_SCALE = 2.0**-5


@dataclass(frozen=True)
class QdqNetwork:
    """``x [N, 3, 8, 8] -> int8 Conv, Relu -> float Conv -> y [N, 4, 8, 8]`` in ONNX files.

    ``path`` has a dynamic batch, ``static_path`` a batch of 1.
    """

    path: Path
    static_path: Path
    weight_codes: np.ndarray  # [8, 3, 3, 3] int8
    bias: np.ndarray  # [8]
    float_weight: np.ndarray  # [4, 8, 3, 3]

    def inputs(self, count: int) -> np.ndarray:
        """Values on the input's integer grid, and some between and beyond its points."""
        rng = np.random.default_rng(count)
        return rng.uniform(-0.5, 4.5, (count, 3, 8, 8)).astype(np.float32)

    def reference(self, x: np.ndarray) -> np.ndarray:
        """The same arithmetic in float64."""
        codes = np.clip(np.rint(x.astype(np.float64) / INPUT_SCALE), 0, 255)
        summed = conv3x3(codes, self.weight_codes.astype(np.float64))
        real = summed * (INPUT_SCALE * WEIGHT_SCALE) + self.bias[:, None, None]
        hidden = np.clip(np.rint(real / OUTPUT_SCALE), 0, 255) * OUTPUT_SCALE
        return conv3x3(hidden, self.float_weight.astype(np.float64))


def conv3x3(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Convolution with padding 1: ``x [N, C, H, W]``, ``weight [K, C, 3, 3]``."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.einsum("nchwij,kcij->nkhw", windows, weight)


@pytest.fixture(scope="session")
def qdq_network(tmp_path_factory: pytest.TempPathFactory) -> QdqNetwork:
    onnx = pytest.importorskip("onnx", reason="the test networks are built with onnx")
    helper, to_array = onnx.helper, onnx.numpy_helper.from_array
    rng = np.random.default_rng(0)
    # |w| <= 63: pair sums of u8 x s8 fit 16 bits, so CPUs without VNNI give the same answer.
    weight = rng.integers(-63, 64, (8, 3, 3, 3)).astype(np.int8)
    bias = (rng.integers(-200, 200, 8) * INPUT_SCALE * WEIGHT_SCALE).astype(np.float32)
    float_weight = rng.normal(0, 0.2, (4, 8, 3, 3)).astype(np.float32)
    constants = {
        "x_scale": np.float32(INPUT_SCALE),
        "h_scale": np.float32(OUTPUT_SCALE),
        "zero": np.uint8(0),
        "w_codes": weight,
        "w_scale": np.full(8, WEIGHT_SCALE, np.float32),
        "w_zero": np.zeros(8, np.int8),
        "bias": bias,
        "w_float": float_weight,
    }
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "x_scale", "zero"], ["x_q"], "x_Q"),
        node("DequantizeLinear", ["x_q", "x_scale", "zero"], ["x_dq"], "x_DQ"),
        node("DequantizeLinear", ["w_codes", "w_scale", "w_zero"], ["w"], "w_DQ", axis=0),
        node("Conv", ["x_dq", "w", "bias"], ["c"], "conv_int", pads=[1] * 4),
        node("Relu", ["c"], ["r"], "relu"),
        node("QuantizeLinear", ["r", "h_scale", "zero"], ["h_q"], "h_Q"),
        node("DequantizeLinear", ["h_q", "h_scale", "zero"], ["h"], "h_DQ"),
        node("Conv", ["h", "w_float"], ["y"], "conv_float", pads=[1] * 4),
    ]
    folder = tmp_path_factory.mktemp("qdq")
    paths = []
    for batch in ("batch", 1):
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            nodes,
            "qdq",
            [value("x", onnx.TensorProto.FLOAT, [batch, 3, 8, 8])],
            [value("y", onnx.TensorProto.FLOAT, [batch, 4, 8, 8])],
            [to_array(np.asarray(array), name) for name, array in constants.items()],
        )
        opset = [helper.make_opsetid("", 19)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=9)
        onnx.checker.check_model(model)
        paths.append(folder / f"{batch}.onnx")
        onnx.save(model, paths[-1])
    return QdqNetwork(paths[0], paths[1], weight, bias, float_weight)


@pytest.fixture(scope="session")
def openvino_ir(qdq_network: QdqNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network as OpenVINO IR."""
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    path = tmp_path_factory.mktemp("ir") / "model.xml"
    openvino.save_model(openvino.Core().read_model(qdq_network.path), path, compress_to_fp16=False)
    return path
