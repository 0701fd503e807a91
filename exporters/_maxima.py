"""Maxima and minima of an OpenVINO graph, written so that no quantizer is fused into them.

OpenVINO's CPU plugin fuses a quantizer into ``ReduceMax`` and ``ReduceMin`` before it and then
rounds the intermediate results to integers as well (seen in 2026.4: the maximum of numbers below
one becomes 1). ``TopK`` gives the same numbers, and nothing is fused into it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

_LARGEST = {"ReduceMax": 1, "ReduceMin": 0}


def write_maxima_as_top(model: ir.Model) -> None:
    """Replace float reductions to a maximum or minimum in ``model``."""
    for node in [node for node in model.graph if node.op_type in _LARGEST]:
        source, axes = node.inputs[0], _axes(node)
        if source is not None and source.dtype == ir.DataType.FLOAT and axes:
            _replace(model.graph, node, source, axes)


def _axes(node: ir.Node) -> list[int]:
    """Return the reduced axes; none where they are not known."""
    source = node.inputs[0]
    if source is None or source.shape is None:
        return []
    rank = len(source.shape)
    given = node.inputs[1] if len(node.inputs) > 1 else None
    if given is None:
        return list(range(rank))
    constant = ir.convenience.get_const_tensor(given)
    if constant is None:
        return []
    return sorted(int(axis) % rank for axis in constant.numpy().reshape(-1))


def _replace(graph: ir.Graph, node: ir.Node, source: ir.Value, axes: list[int]) -> None:
    name, output = node.name, node.outputs[0]
    largest = _LARGEST[node.op_type]
    value = source
    for axis in axes:
        one = _constant(graph, f"{name}.top_{axis}.count", [1])
        attributes = {"axis": axis, "largest": largest, "sorted": 1}
        top = ir.node("TopK", [value, one], attributes, name=f"{name}.top_{axis}", num_outputs=2)
        graph.insert_before(node, top)
        value = top.outputs[0]
        value.type = source.type
    keep = node.attributes.get("keepdims")
    if keep is not None and not keep.as_int():
        reduced = _constant(graph, f"{name}.axes", axes)
        squeeze = ir.node("Squeeze", [value, reduced], name=f"{name}.squeeze")
        graph.insert_before(node, squeeze)
        value = squeeze.outputs[0]
    value.type, value.shape = output.type, output.shape
    label = output.name
    output.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    value.name = label


def _constant(graph: ir.Graph, name: str, numbers: list[int]) -> ir.Value:
    tensor = ir.tensor(np.array(numbers, np.int64), name=name)
    value = ir.Value(
        name=name,
        const_value=tensor,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape([len(numbers)]),
    )
    graph.register_initializer(value)
    return value
