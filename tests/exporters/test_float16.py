"""The FP16 pass: types by ONNX's own checker, numbers by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from edgekit.errors import ExportError, UnsupportedError
from edgekit.exporters._float16 import to_float16

onnx = pytest.importorskip("onnx", reason="the FP16 pass rewrites ONNX graphs")
ir = pytest.importorskip("onnx_ir", reason="the FP16 pass rewrites ONNX graphs")

FLOAT, FLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
UNIT_ROUNDOFF = 2.0**-11  # of FP16: rounding to nearest moves a normal number by at most this part
QDQ_STEP = 2.0**-4  # a power of two, so that code * step is exact in FP16 for all 8-bit codes


def parse(
    text: str, constants: Mapping[str, np.ndarray] | None = None, opset: int = 20
) -> ir.Model:
    """Read a graph in ONNX's text form and give it the constants."""
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : {opset}, "other" : 1]> {text}'
    )
    for name, array in (constants or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto))


def checked(model: ir.Model) -> onnx.ModelProto:
    """Serialize; ONNX's strict type inference must agree with every type that the graph states."""
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def run(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Run the graph without fusing its quantizers.

    Where the CPU has no FP16 kernel, ONNX Runtime computes in float32 and rounds at times only.
    """
    ort = pytest.importorskip("onnxruntime", reason="the reference that executes ONNX")
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, dict(feeds)))


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def dtypes(model: ir.Model) -> dict[str, str]:
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [output for node in model.graph for output in node.outputs]
    return {value.name: value.dtype.name for value in values}


def quantized_network(step: float = QDQ_STEP) -> ir.Model:
    """x -> Q/DQ -> conv -> relu -> Q/DQ -> depthwise + identity -> Q/DQ -> pool -> gemm."""
    rng = np.random.default_rng(3)
    codes = lambda *shape: rng.integers(-127, 128, shape).astype(np.int8)  # noqa: E731
    zero, scale = np.int8(0), np.float32
    constants = {
        "zp": zero, "s0": scale(step), "s1": scale(step), "s2": scale(step),
        "w1": codes(8, 4, 3, 3), "ws1": np.full(8, 2.0**-10, scale),
        "w2": codes(8, 1, 3, 3), "ws2": np.full(8, 2.0**-9, scale),
        "w3": codes(5, 8), "ws3": np.full(5, 2.0**-8, scale),
        "b1": rng.normal(size=8).astype(scale), "b2": rng.normal(size=8).astype(scale),
        "b3": rng.normal(size=5).astype(scale),
    }  # fmt: skip
    text = """
    network (float[N, 4, 9, 9] x) => (float[N, 5] y) {
        q0 = QuantizeLinear(x, s0, zp)
        d0 = DequantizeLinear(q0, s0, zp)
        k1 = DequantizeLinear <axis = 0> (w1, ws1)
        c1 = Conv <pads = [1, 1, 1, 1]> (d0, k1, b1)
        r1 = Relu(c1)
        q1 = QuantizeLinear(r1, s1, zp)
        d1 = DequantizeLinear(q1, s1, zp)
        k2 = DequantizeLinear <axis = 0> (w2, ws2)
        c2 = Conv <pads = [1, 1, 1, 1], group = 8> (d1, k2, b2)
        a2 = Add(c2, d1)
        p2 = GlobalAveragePool(a2)
        f2 = Flatten(p2)
        q2 = QuantizeLinear(f2, s2, zp)
        d2 = DequantizeLinear(q2, s2, zp)
        k3 = DequantizeLinear <axis = 0> (w3, ws3)
        y = Gemm <transB = 1> (d2, k3, b3)
    }
    """
    return parse(text, constants)


def test_everything_between_the_borders_is_float16() -> None:
    half = to_float16(quantized_network())
    proto = checked(half)
    assert proto.graph.input[0].type.tensor_type.elem_type == FLOAT
    assert proto.graph.output[0].type.tensor_type.elem_type == FLOAT
    assert [name for name, dtype in dtypes(half).items() if dtype == "FLOAT"] == ["x", "y"]
    assert ops(half).count("Cast") == 2
    assert ops(half)[0] == ops(half)[-1] == "Cast"


def test_integer_codes_and_names_stay() -> None:
    model = quantized_network()
    half = to_float16(model)
    before, after = model.graph.initializers, half.graph.initializers
    assert sorted(after) == sorted(before)
    for name, value in before.items():
        stored, kept = after[name].const_value.numpy(), value.const_value.numpy()
        if kept.dtype == np.int8:
            np.testing.assert_array_equal(stored, kept)
            assert stored.dtype == np.int8
        else:
            assert stored.dtype == np.float16
            # Rounding to nearest is all that may happen to a constant.
            np.testing.assert_array_equal(stored, kept.astype(np.float16))
    assert [node.name for node in model.graph if node.op_type != "Cast"] == [
        node.name for node in half.graph if node.op_type != "Cast"
    ]


def test_the_callers_model_is_untouched() -> None:
    model = quantized_network()
    before = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    to_float16(model, keep_float32=())
    assert ir.serde.serialize_model(model).SerializeToString(deterministic=True) == before


def test_one_quantized_layer_moves_by_at_most_one_step() -> None:
    rng = np.random.default_rng(5)
    constants = {
        "zp": np.int8(0),
        "s": np.float32(QDQ_STEP),
        "w": rng.integers(-127, 128, (8, 4, 3, 3)).astype(np.int8),
        "ws": np.full(8, 2.0**-10, np.float32),
        "b": rng.normal(size=8).astype(np.float32),
    }
    text = """
    layer (float[N, 4, 9, 9] x) => (float[N, 8, 7, 7] y) {
        q = QuantizeLinear(x, s, zp)
        d = DequantizeLinear(q, s, zp)
        k = DequantizeLinear <axis = 0> (w, ws)
        c = Conv(d, k, b)
        r = Relu(c)
        qy = QuantizeLinear(r, s, zp)
        y = DequantizeLinear(qy, s, zp)
    }
    """
    model = parse(text, constants)
    feeds = {"x": rng.normal(size=(4, 4, 9, 9)).astype(np.float32)}
    full, half = run(checked(model), feeds)[0], run(checked(to_float16(model)), feeds)[0]
    steps = np.abs(full - half) / QDQ_STEP
    # Operands are exact in FP16 (powers of two). What differs is the FP16 rounding of x, bias and
    # sum: each below 127.5 steps * 2**-11 = 0.06 steps, which moves a code by one at the most.
    assert steps.max() <= 1.0
    # A rounding of 0.06 steps crosses a tie for about 6 % of the largest codes, fewer elsewhere.
    assert np.mean(steps > 0) < 0.06
    assert full.std() > 4 * QDQ_STEP  # the layer does something that the bounds above would notice


def with_output(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Return a copy that also returns the int8 tensor ``name``."""
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    copy.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT8, None))
    return copy


def test_network_stays_close_to_float32() -> None:
    model = quantized_network()
    feeds = {"x": np.random.default_rng(7).normal(size=(64, 4, 9, 9)).astype(np.float32)}
    full, full_codes = run(with_output(checked(model), "q2"), feeds)
    half, half_codes = run(with_output(checked(to_float16(model)), "q2"), feeds)
    flips = np.abs(full_codes.astype(int) - half_codes.astype(int))
    # Three layers of the rounding that the test above bounds to 0.06 steps each. The pool averages
    # 81 values, so a flipped code before it counts for 1/81: still at most one step, and rarely.
    assert flips.max() <= 1
    assert np.mean(flips) < 0.06
    assert np.abs(full_codes.astype(int)).mean() > 10  # enough codes for the bounds to mean much
    stored = model.graph.initializers
    kernel = np.abs(stored["w3"].const_value.numpy().astype(np.float32)) * np.float32(2.0**-8)
    bias = np.abs(stored["b3"].const_value.numpy())
    rounding = np.abs(full_codes.astype(np.float32)) * QDQ_STEP @ kernel.T + bias
    # The flipped codes' own contribution, and 4 FP16 roundings (as for the convolution below).
    assert np.all(np.abs(full - half) <= flips * QDQ_STEP @ kernel.T + 4 * UNIT_ROUNDOFF * rounding)


def test_float_convolution_obeys_the_rounding_bound() -> None:
    rng = np.random.default_rng(11)
    constants = {
        "w": rng.normal(size=(6, 4, 3, 3)).astype(np.float32),
        "b": rng.normal(size=6).astype(np.float32),
    }
    text = "layer (float[N, 4, 8, 8] x) => (float[N, 6, 6, 6] y) { y = Conv(x, w, b) }"
    model = parse(text, constants)
    x = rng.normal(size=(2, 4, 8, 8)).astype(np.float32)
    full, half = run(checked(model), {"x": x})[0], run(checked(to_float16(model)), {"x": x})[0]
    sizes = parse(text, {name: np.abs(array) for name, array in constants.items()})
    magnitude = run(checked(sizes), {"x": np.abs(x)})[0]
    # x, w and b are rounded once, the result once: at most 3 roundoffs of sum |x||w| + |b|. One
    # more covers second-order terms and FP32 accumulation in another order.
    assert np.all(np.abs(full - half) <= 4 * UNIT_ROUNDOFF * magnitude)
    assert not np.array_equal(full, half)  # otherwise nothing was converted


@pytest.mark.parametrize(
    ("body", "constants", "still_float32"),
    [
        pytest.param(
            "y = Resize <mode = \"linear\"> (x, , scales)",
            {"scales": np.array([1, 1, 4 / 3, 4 / 3], np.float32)},
            {"scales"},
            id="resize-scales",
        ),
        pytest.param(
            "y = Clip(x, low, high)", {"low": np.float32(-0.5), "high": np.float32(0.5)}, set(),
            id="clip-bounds",
        ),
        pytest.param(
            "y = Pad(x, pads, value)",
            {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "value": np.float32(0.25)}, set(),
            id="pad-value",
        ),
        pytest.param(
            "s = Shape <start = 3> (x) q = Squeeze(s) e = Cast <to = 1> (q) "
            "r = Range(zero, e, one) y = Add(x, r)",
            {"zero": np.float32(0), "one": np.float32(1)}, {"zero", "one", "r"},
            id="range-has-no-float16",
        ),
        pytest.param(
            "s = Shape(x) z = ConstantOfShape(s) y = Add(x, z)", {}, set(),
            id="constant-of-shape-default",
        ),
        pytest.param(
            "s = Shape(x) z = ConstantOfShape <value = float[1] {0.5}> (s) y = Add(x, z)",
            {}, set(), id="constant-of-shape-value",
        ),
        pytest.param(
            "c = Constant <value_float = 0.5> () y = Mul(x, c)", {}, set(), id="constant-node",
        ),
        pytest.param(
            "g = Greater(x, half) m = Cast <to = 1> (g) y = Mul(x, m)",
            {"half": np.float32(0.5)}, set(), id="cast-from-bool",
        ),
        pytest.param(
            "v, i = TopK <axis = 3> (x, k) j = Cast <to = 1> (i) y = Add(v, j)",
            {"k": np.array([2])}, set(), id="several-outputs",
        ),
        pytest.param(
            "a, b = Split <axis = 1, num_outputs = 2> (x) y = Concat <axis = 1> (b, a, b)",
            {}, set(), id="variadic",
        ),
        pytest.param(
            "y = LayerNormalization <axis = 3, epsilon = 0.00001> (x, scale)",
            {"scale": np.ones(6, np.float32)}, set(), id="layer-normalization",
        ),
    ],
)  # fmt: skip
def test_operators_keep_their_type_rules(
    body: str, constants: dict[str, np.ndarray], still_float32: set[str]
) -> None:
    model = parse(f"op (float[1, 2, 4, 6] x) => (float[a, b, c, d] y) {{ {body} }}", constants)
    half = to_float16(model)
    x = np.random.default_rng(13).normal(size=(1, 2, 4, 6)).astype(np.float32)
    full_y, half_y = run(checked(model), {"x": x})[0], run(checked(half), {"x": x})[0]
    floats = {name for name, dtype in dtypes(half).items() if dtype == "FLOAT"} - {"x", "y"}
    # A Cast may stand before and after what must stay float32, but nothing else is float32.
    assert {name for name in floats if not name.endswith("_float32")} == still_float32
    # Two or three roundings of values up to 8 (range and top-k add indices).
    np.testing.assert_allclose(half_y, full_y, rtol=0, atol=4 * UNIT_ROUNDOFF * 8)


def test_type_that_an_operator_has_by_default_is_stated() -> None:
    model = parse(
        "op (float[6] x) => (float[6] y) { r = RandomNormal <shape = [6]> () y = Add(x, r) }"
    )
    half = to_float16(model)
    checked(half)
    assert dtypes(half)["r"] == "FLOAT16"


def test_a_constant_serves_float16_and_float32_readers_exactly() -> None:
    scales = np.array([1, 1, 4 / 3, 4 / 3], np.float32)
    model = parse(
        "op (float[1, 2, 3, 3] x, float[4] v) => (float[a, b, c, d] y, float[4] z) "
        "{ y = Resize(x, , scales) z = Mul(v, scales) }",
        {"scales": scales},
    )
    half = to_float16(model)
    checked(half)
    initializers = half.graph.initializers
    np.testing.assert_array_equal(initializers["scales"].const_value.numpy(), scales)
    twin = initializers["scales_float16"].const_value.numpy()
    np.testing.assert_array_equal(twin, scales.astype(np.float16))


def test_other_types_are_left_alone() -> None:
    model = parse(
        "op (int64[N] ids, float16[N, 3] h, bool[N, 1] m) => (float16[N, 3] y, int64[N] n) "
        "{ g = Gather(table, ids) a = Add(g, h) y = Where(m, a, h) n = Add(ids, one) }",
        {"table": np.ones((4, 3), np.float16), "one": np.array(1)},
    )
    half = to_float16(model)
    assert "Cast" not in ops(half)
    assert dtypes(half) == dtypes(model)


def test_output_read_inside_and_input_passed_through() -> None:
    model = parse(
        "op (float[2] x) => (float[2] y, float[2] z) { y = Relu(x) z = Mul(y, x) }",
    )
    half = to_float16(model)
    proto = checked(half)
    assert [output.name for output in proto.graph.output] == ["y", "z"]
    assert ops(half).count("Cast") == 3  # one for the input, one for each output
    x = np.array([-1.5, 2.5], np.float32)
    for got, want in zip(run(proto, {"x": x}), run(checked(model), {"x": x}), strict=True):
        np.testing.assert_array_equal(got, want)  # exact in FP16: few mantissa bits


def test_kept_nodes_compute_in_float32_without_casts_between_them() -> None:
    # 300**2 overflows FP16, so the result tells in which type the two nodes ran. ONNX's reference
    # evaluator computes in the types of the graph, which ONNX Runtime on a CPU does not.
    from onnx.reference import ReferenceEvaluator

    model = parse(
        "op (float[1] x) => (float[1] y) { a = Relu(x) b = Mul(a, a) c = Sqrt(b) y = Relu(c) }"
    )
    for node in model.graph:
        node.name = f"node_{node.outputs[0].name}"
    x = {"x": np.array([300], np.float32)}
    with np.errstate(over="ignore"):
        assert np.isinf(ReferenceEvaluator(checked(to_float16(model))).run(None, x)[0])
    kept = to_float16(model, keep_float32=["node_b", "node_c"])
    assert ReferenceEvaluator(checked(kept)).run(None, x)[0] == 300
    # x to a, a to b, c to y, and the output.
    assert ops(kept) == ["Cast", "Relu", "Cast", "Mul", "Sqrt", "Cast", "Relu", "Cast"]


def test_kept_quantizers_keep_any_scale() -> None:
    model = quantized_network(step=0.1)  # no FP16 number
    for index, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{index}"
    keep = [node.name for node in model.graph if "quantizelinear" in node.name.lower()]
    half = to_float16(model, keep_float32=keep)
    checked(half)
    assert half.graph.initializers["s0"].const_value.numpy() == np.float32(0.1)


def test_unknown_kept_name_is_an_error() -> None:
    with pytest.raises(ExportError, match="keep_float32 names no node of the graph: typo"):
        to_float16(quantized_network(), keep_float32=["typo"])


@pytest.mark.parametrize("scale", [0.1, 0.0, -0.5, 1e5, 1e-9, np.nan])
def test_scale_must_be_a_positive_float16_number(scale: float) -> None:
    with pytest.raises(ExportError, match=r"scale 's0' holds .*not a positive FP16 number"):
        to_float16(quantized_network(step=scale))


def test_subnormal_scale_is_accepted() -> None:
    half = to_float16(quantized_network(step=2.0**-24))
    assert half.graph.initializers["s0"].const_value.numpy() == np.float16(2.0**-24)


def test_constant_beyond_the_range_is_named() -> None:
    model = parse("op (float[2] x) => (float[2] y) { y = Mul(x, big) }", {"big": np.float32(-7e4)})
    with pytest.raises(ExportError, match=r"constant 'big' holds 70000, beyond the FP16 range"):
        to_float16(model)


def test_infinite_mask_stays_infinite_and_epsilon_stays_positive() -> None:
    constants = {
        "mask": np.array([0, -np.inf], np.float32),
        "epsilon": np.float32(1e-12),
        "table": np.array([1e-12, 1], np.float32),
    }
    model = parse(
        "op (float[2] x) => (float[2] y) "
        "{ a = Add(x, mask) b = Max(a, epsilon) y = Mul(b, table) }",
        constants,
    )
    stored = to_float16(model).graph.initializers
    np.testing.assert_array_equal(stored["mask"].const_value.numpy(), [0, -np.inf])
    assert stored["epsilon"].const_value.numpy() == np.float16(2.0**-24)
    # Only a lone number is an epsilon; in a table a tiny weight is just small.
    np.testing.assert_array_equal(stored["table"].const_value.numpy(), [0, 1])


def test_untyped_values_are_inferred_or_named() -> None:
    model = quantized_network()
    for node in model.graph:
        for output in node.outputs:
            if not output.is_graph_output():
                output.type = None
    checked(to_float16(model))


def test_type_that_cannot_be_inferred_is_named() -> None:
    broken = parse("op (float[2] x) => (float[2] y) { a = Relu(x) y = Relu(a) }")
    broken.graph[0].outputs[0].type = None
    broken.graph.inputs[0].type = None
    with pytest.raises(ExportError, match="2 tensors have no known type, first 'x'"):
        to_float16(broken)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        pytest.param(
            "op (float[2] x, bool b) => (float[2] y) { y = If (b) "
            "<then_branch = t () => (float[2] u) { u = Relu(x) }, "
            "else_branch = e () => (float[2] v) { v = Neg(x) }> }",
            "has a subgraph",
            id="subgraph",
        ),
        pytest.param(
            "op (float[2] x) => (float[2] y) { y = other.Thing(x) }",
            "'other:Thing', which ONNX opset 20 does not define",
            id="foreign-operator",
        ),
    ],
)
def test_what_cannot_be_typed_is_refused(text: str, what: str) -> None:
    with pytest.raises(UnsupportedError, match=what):
        to_float16(parse(text))


def test_functions_are_refused() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20, "local" : 1]> '
        "op (float[2] x) => (float[2] y) { y = local.twice(x) } "
        '<domain: "local", opset_import: ["" : 20]> twice (a) => (b) { b = Add(a, a) }'
    )
    with pytest.raises(UnsupportedError, match=r"has functions \(twice\)"):
        to_float16(ir.serde.deserialize_model(proto))
