from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import LoadError
from edgekit.runners.onnx_graph import read_onnx_graph


def test_agrees_with_the_onnx_package(qdq_network: Any) -> None:
    onnx = pytest.importorskip("onnx", reason="the reference reader is onnx")
    expected = onnx.load(qdq_network.path).graph
    graph = read_onnx_graph(qdq_network.path)
    assert [
        (n.op_type, n.domain, n.name, list(n.inputs), list(n.outputs)) for n in graph.nodes
    ] == [(n.op_type, n.domain, n.name, list(n.input), list(n.output)) for n in expected.node]
    for node, wanted in zip(graph.nodes, expected.node, strict=True):
        integers = {a.name: a.i for a in wanted.attribute if a.type == onnx.AttributeProto.INT}
        assert dict(node.integers) == integers
    names = {1: "float32", 2: "uint8", 3: "int8"}
    assert graph.initializers == {t.name: names[t.data_type] for t in expected.initializer}


def test_negative_and_absent_integers(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the reference reader is onnx")
    node = onnx.helper.make_node("Softmax", ["x"], ["y"], axis=-1, note="text", scale=0.5)
    values = [onnx.helper.make_tensor_value_info(name, 1, [2]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:])
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    assert dict(read_onnx_graph(path).nodes[0].integers) == {"axis": -1}


def test_cut_files_are_refused(qdq_network: Any, tmp_path: Path) -> None:
    data = qdq_network.path.read_bytes()
    path = tmp_path / "cut.onnx"
    for size in (0, 1, 20, len(data) // 2, len(data) - 30):
        path.write_bytes(data[:size])
        with pytest.raises(LoadError, match=r"cut\.onnx"):
            read_onnx_graph(path)


def test_garbage_and_absence_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(LoadError, match="not a readable ONNX file"):
        read_onnx_graph(path)
    path.write_bytes(b"\xff" * 64)
    with pytest.raises(LoadError, match="overlong number"):
        read_onnx_graph(path)
