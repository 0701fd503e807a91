"""Which operators of a TensorRT graph keep FP32 types, on graphs written out by hand."""

from __future__ import annotations

import pytest

from edgekit.exporters._islands import float32_islands

onnx = pytest.importorskip("onnx", reason="parses the graphs")
ir = pytest.importorskip("onnx_ir", reason="the rule reads onnx_ir models")

# Names of nodes are their outputs: `y = Op(x)` makes a node "y". w0, w1, w2 are INT8 constants.
HEADER = """
<ir_version: 9, opset_import: ["" : 20]>
g (float[N,4,8,8] x, float s, int8 z, int8[4,4,1,1] w0, int8[4,4,1,1] w1, float[4,4,1,1] f)
=> (float[N,4,8,8] out) {
"""
QUANTIZED_CONV = """
q0 = QuantizeLinear(x, s, z)
d0 = DequantizeLinear(q0, s, z)
v0 = DequantizeLinear(w0, s, z)
c0 = Conv(d0, v0)
"""
SECOND_CONV = """
q1 = QuantizeLinear(r, s, z)
d1 = DequantizeLinear(q1, s, z)
v1 = DequantizeLinear(w1, s, z)
out = Conv(d1, v1)
"""


def islands(body: str) -> set[str]:
    proto = onnx.parser.parse_model(HEADER + body + "}")
    for node in proto.graph.node:
        node.name = node.output[0]
    return set(float32_islands(ir.serde.deserialize_model(proto)))


def test_conv_relu_quantizer_chain_stays_in_float32() -> None:
    found = islands(QUANTIZED_CONV + "r = Relu(c0)" + SECOND_CONV)
    assert found == {"q0", "d0", "v0", "c0", "r", "q1", "d1", "v1", "out"}


@pytest.mark.parametrize("clamp", ["Relu(c0)", "Clip(c0, s)", "Add(c0, x)", "Add(x, c0)"])
def test_clamps_and_sums_are_epilogues(clamp: str) -> None:
    assert {"c0", "r", "q1"} <= islands(QUANTIZED_CONV + f"r = {clamp}" + SECOND_CONV)


def test_swish_behind_a_convolution_is_fp16() -> None:
    body = QUANTIZED_CONV + "g = Sigmoid(c0) r = Mul(c0, g)" + SECOND_CONV
    found = islands(body)
    assert not found & {"c0", "g", "r", "q0", "d0", "v0"}
    assert "out" in found  # ends in the network's output
    assert {"q1", "d1", "v1"} <= found  # and its pair takes its type


def test_one_float_reader_is_enough_for_fp16() -> None:
    body = QUANTIZED_CONV + "r = Relu(c0) t = Tanh(r)" + SECOND_CONV
    assert not islands(body) & {"c0", "r"}


@pytest.mark.parametrize(
    "end", ["m = GlobalAveragePool(r) out = Add(m, r)", "out = Identity(r)", "out = Relu(r)"]
)
def test_ends_of_a_chain(end: str) -> None:
    found = islands(QUANTIZED_CONV + "r = Relu(c0)\n" + end)
    # pooling and network outputs end a chain; Identity is an operator like any other
    assert ({"c0", "r"} <= found) == ("Identity" not in end)


def test_float_convolution_is_no_island() -> None:
    assert islands("c0 = Conv(x, f) out = Relu(c0)") == set()


def test_quantized_input_with_float_weight_counts_as_integer() -> None:
    body = "q0 = QuantizeLinear(x, s, z) d0 = DequantizeLinear(q0, s, z) out = Conv(d0, f)"
    assert islands(body) == {"q0", "d0", "out"}


def test_weights_that_alone_are_integers_make_no_island() -> None:
    assert islands("v0 = DequantizeLinear(w0, s, z) out = Conv(x, v0)") == set()


def test_both_halves_of_a_shared_pair_take_one_type() -> None:
    """One pair feeds an island and an FP16 chain: it is the island's, with its other reader."""
    body = (
        QUANTIZED_CONV
        + "r = Relu(c0)\n"
        + SECOND_CONV.replace("out", "c1")
        + "c2 = Conv(d1, v1) g = Sigmoid(c2) h = Mul(c2, g) out = Add(c1, h)"
    )
    found = islands(body)
    assert {"c0", "q1", "d1", "v1", "c1", "c2"} <= found
    assert not found & {"g", "h"}


def test_operands_of_a_product_take_one_type() -> None:
    """A product behind an island leads to FP16 operators: its weight stays in FP32 all the same."""
    body = (
        QUANTIZED_CONV
        + "r = Relu(c0)\n"
        + SECOND_CONV.replace("out", "c1")
        + "g = Sigmoid(c1) out = Mul(c1, g)"
    )
    found = islands(body)
    assert {"q1", "d1", "v1", "c1"} <= found
    assert not found & {"g", "out"}


def test_residual_sum_keeps_both_pairs() -> None:
    body = (
        QUANTIZED_CONV + "r = Relu(c0)\n" + SECOND_CONV.replace("out", "c1") + "out = Add(c1, d1)"
    )
    assert islands(body) == {"q0", "d0", "v0", "c0", "r", "q1", "d1", "v1", "c1", "out"}
