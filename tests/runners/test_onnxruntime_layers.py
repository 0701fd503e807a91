from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit.runners.onnx_graph import GraphNode, OnnxGraph
from edgekit.runners.onnxruntime import OnnxRuntimeRunner
from edgekit.runners.onnxruntime_layers import executed_layers

onnx = pytest.importorskip("onnx", reason="the test network is built with onnx")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


@pytest.fixture(scope="module")
def residual_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Float convolutions that ONNX Runtime renames: blocked, with Relu and Add fused in."""
    rng = np.random.default_rng(0)
    helper = onnx.helper
    # Names that are prefixes of one another, and one layer without a name.
    names = ["conv1", "conv10", "conv1_shortcut", ""]
    weights = [
        onnx.numpy_helper.from_array(rng.normal(size=(16, 16, 3, 3)).astype(np.float32), f"w{i}")
        for i in range(4)
    ]

    def conv(index: int, source: str, output: str) -> onnx.NodeProto:
        return helper.make_node("Conv", [source, f"w{index}"], [output], names[index], pads=[1] * 4)

    nodes = [
        conv(0, "x", "a"),
        helper.make_node("Relu", ["a"], ["a_relu"], "relu1"),
        conv(1, "a_relu", "b"),
        conv(2, "a_relu", "c"),
        helper.make_node("Add", ["b", "c"], ["d"], "add"),
        helper.make_node("Relu", ["d"], ["d_relu"], "relu2"),
        conv(3, "d_relu", "y"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "residual",
        [value("x", 1, ["batch", 16, 8, 8])],
        [value("y", 1, ["batch", 16, 8, 8])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    path = tmp_path_factory.mktemp("residual") / "model.onnx"
    onnx.save(model, path)
    return path


def test_every_layer_keeps_its_own_name(residual_network: Path) -> None:
    with OnnxRuntimeRunner(residual_network) as runner:
        layers = runner.executed_layers()
    # An unnamed node goes by its output.
    assert sorted(layer.name for layer in layers) == ["conv1", "conv10", "conv1_shortcut", "y"]
    assert {layer.precision for layer in layers} == {"float32"}


def _node(op_type: str, name: str, inputs: tuple[str, ...], output: str) -> GraphNode:
    return GraphNode(op_type, "", name, inputs, (output,))


def test_unchanged_names_go_before_guesses() -> None:
    original = OnnxGraph(
        (_node("MatMul", "fc", ("x", "w"), "a"), _node("MatMul", "fc/2", ("a", "v"), "y")),
        {"w": "float16", "v": "float16"},
    )
    optimized = OnnxGraph(
        (_node("FusedMatMul", "fc/2/fused", ("x", "w_"), "t"), original.nodes[1]),
        {"w_": "float16", "v": "float16"},
    )
    layers = executed_layers(original, optimized)
    assert [(layer.name, layer.precision) for layer in layers] == [
        ("fc", "float16"),
        ("fc/2", "float16"),
    ]


def test_a_longer_word_is_no_fused_name() -> None:
    # "conv12/fused" continues the word "conv1": what counts is the tensor that it makes.
    original = OnnxGraph(
        (_node("Conv", "conv1", ("x", "w"), "a"), _node("Conv", "other", ("a", "v"), "y")), {}
    )
    optimized = OnnxGraph(
        (
            _node("FusedConv", "conv12/fused", ("s", "t"), "y"),
            _node("FusedConv", "c", ("x", "w_"), "a"),
        ),
        {},
    )
    assert [layer.name for layer in executed_layers(original, optimized)] == ["other", "conv1"]


def test_a_blocked_name_is_that_of_a_tensor() -> None:
    original = OnnxGraph(
        (_node("Conv", "a", ("x", "w"), "t"), _node("Conv", "b", ("t", "v"), "a_y")), {}
    )
    optimized = OnnxGraph(
        (
            _node("Conv", "a_y_nchwc", ("s", "reorder_1"), "r1"),
            _node("Conv", "t_nchwc", ("x", "reorder_0"), "r0"),
        ),
        {},
    )
    assert [layer.name for layer in executed_layers(original, optimized)] == ["b", "a"]


def test_an_unknown_origin_keeps_the_optimizers_name() -> None:
    original = OnnxGraph((_node("Relu", "relu", ("x",), "y"),), {})
    optimized = OnnxGraph((_node("QLinearConv", "made_up", ("x",), "y"),), {})
    (layer,) = executed_layers(original, optimized)
    assert (layer.name, layer.precision) == ("made_up", "int8")


def test_layer_without_its_name_is_known_by_its_widened_codes() -> None:
    """The optimizer carries out the cast of 4-bit codes and keeps the name of its result."""
    original = OnnxGraph(
        (
            GraphNode("Cast", "", "widen", ("codes",), ("wide",)),
            GraphNode("DequantizeLinear", "", "dq", ("wide", "scale"), ("values",)),
            GraphNode("Conv", "", "body.0", ("x", "values"), ("y",)),
        ),
        {"codes": "int4", "scale": "float32"},
    )
    optimized = OnnxGraph(
        (GraphNode("QLinearConv", "", "", ("x", "s", "z", "wide"), ("y_q",)),), {"wide": "int8"}
    )
    (layer,) = executed_layers(original, optimized)
    assert (layer.name, layer.precision) == ("body.0", "int8")


def test_packed_weights_are_told_with_their_width() -> None:
    nodes = (
        GraphNode("MatMulNBits", "", "fc", ("x", "w", "s"), ("y",), {"bits": 8, "K": 4}),
        GraphNode("GatherBlockQuantized", "", "table", ("t", "i", "s"), ("z",), {"gather_axis": 0}),
    )
    graph = OnnxGraph(nodes, {"w": "uint8", "t": "int4", "s": "float32"})
    found = {layer.name: layer.precision for layer in executed_layers(graph, graph)}
    assert found == {"fc": "int8 weights, float32 math", "table": "int4 weights, float32 math"}
