"""Layer times of ONNX Runtime, from the profile that its sessions write as JSON."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from edgekit.runners.layer_times import LayerKind, LayerProfile, LayerTime
from edgekit.runners.onnx_graph import GraphNode, OnnxGraph
from edgekit.runners.onnxruntime_layers import FLOAT_OPS, INTEGER_OPS, PACKED_OPS, named_layers

_SUFFIX = "_kernel_time"
_WHOLE_RUN = "model_run"
_CONVERSIONS = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "ReorderInput",
        "ReorderOutput",
    }
)
# Conversions where the optimizer has put them in; in the model itself they are somebody's wish.
_INSERTED_CONVERSIONS = frozenset({"Transpose", "Cast"})
_CONTAINERS = frozenset({"If", "Loop", "Scan"})  # their time is that of the nodes inside
_ITEM_BYTES = {"float": 4, "int32": 4, "int64": 8, "double": 8, "float16": 2, "bfloat16": 2}


@dataclass
class _Node:
    """Events of one node: its arguments, and its microseconds in each run."""

    name: str
    arguments: Mapping[str, Any]
    runs: list[float]


def read_profile(
    profile: str, original: OnnxGraph, optimized: OnnxGraph, runs: int
) -> LayerProfile:
    """Read the profile of a session whose last ``runs`` inferences count.

    Args:
        profile: content of the profile file.
        original: graph of the model file.
        optimized: graph that the session ran.
        runs: timed inferences.
    """
    events = json.loads(profile)
    whole = [event for event in events if event.get("name") == _WHOLE_RUN]
    whole = sorted(whole, key=lambda event: float(event["ts"]))[-runs:]
    nodes = _nodes(events, [float(event["ts"]) for event in whole])
    inside = [sum(node.runs[run] for node in nodes) for run in range(len(whole))]
    outside = [float(event["dur"]) - part for event, part in zip(whole, inside, strict=True)]
    kept = {node.name for node in original.nodes}
    weighted = {layer.name: (name, layer) for name, layer in named_layers(original, optimized)}
    layers = (_layer(node, kept, weighted.get(node.name), optimized) for node in nodes)
    return LayerProfile(tuple(layers), max(median(outside), 0.0))


def _nodes(events: Sequence[Mapping[str, Any]], starts: Sequence[float]) -> list[_Node]:
    found: dict[tuple[str, str], _Node] = {}
    for event in events:
        name, arguments = str(event.get("name", "")), event.get("args", {})
        run = bisect_right(starts, float(event["ts"])) - 1
        if event.get("cat") != "Node" or not name.endswith(_SUFFIX) or run < 0:
            continue
        if arguments.get("op_name") in _CONTAINERS:
            continue
        key = (name, str(arguments.get("node_index")))
        node = found.setdefault(
            key, _Node(name.removesuffix(_SUFFIX), arguments, [0.0] * len(starts))
        )
        node.runs[run] += float(event["dur"])
    return list(found.values())


def _layer(
    node: _Node, kept: set[str], weighted: tuple[str, GraphNode] | None, graph: OnnxGraph
) -> LayerTime:
    op = str(node.arguments.get("op_name", ""))
    name, work = node.name, None
    if weighted is not None:
        name, work = weighted[0], _work(op, node.arguments, weighted[1], graph)
    multiply_adds, moved = work or (None, None)
    return LayerTime(
        name=name,
        op=op,
        kind=_kind(op, node.name in kept),
        # The median, because a single preemption can outweigh all other runs of a small layer.
        microseconds=median(node.runs),
        multiply_adds=multiply_adds,
        moved_bytes=moved,
    )


def _kind(op: str, in_model: bool) -> LayerKind:
    if op in INTEGER_OPS:
        return LayerKind.INTEGER
    if op in FLOAT_OPS:
        return LayerKind.FLOAT
    if op in _CONVERSIONS or (op in _INSERTED_CONVERSIONS and not in_model):
        return LayerKind.CONVERSION
    return LayerKind.OTHER


def _work(
    op: str, arguments: Mapping[str, Any], node: GraphNode, graph: OnnxGraph
) -> tuple[int, int] | None:
    """Return multiply-adds and moved bytes of a weighted node, if its sizes are told."""
    constants = [name for name in node.inputs if graph.shapes.get(name)]
    weights = max(constants, key=lambda name: math.prod(graph.shapes[name]), default=None)
    inputs, outputs = _tensors(arguments, "input"), _tensors(arguments, "output")
    if weights is None or not inputs or not outputs:
        return None
    shape = graph.shapes[weights]
    (_, read), (_, written) = inputs[0], outputs[0]
    if op in PACKED_OPS:
        return _packed_work(op, node, read, written, math.prod(shape))
    if "Conv" not in op:
        products = math.prod(written) * math.prod(shape) // max(written[-1:] or [1])
    else:
        # Each output of a convolution sums a filter; each input of a transposed one feeds one.
        sums = read if "Transpose" in op else written
        products = math.prod(sums) * math.prod(shape[1:])
    item = 1 if "int8" in graph.initializers[weights] else 4
    moved = sum(
        math.prod(size) * _ITEM_BYTES.get(kind, 1) for kind, size in (inputs[0], outputs[0])
    )
    return products, moved + math.prod(shape) * item


def _packed_work(
    op: str, node: GraphNode, read: Sequence[int], written: Sequence[int], weights: int
) -> tuple[int, int] | None:
    """Return the same of a product with packed weights of so many bytes; a lookup has none."""
    if op != "MatMulNBits":
        return None
    products = math.prod(written) * node.integers["K"]
    return products, 4 * (math.prod(read) + math.prod(written)) + weights


def _tensors(arguments: Mapping[str, Any], which: str) -> list[tuple[str, list[int]]]:
    """Return type and shape of a node's tensors, as ``[{"uint8": [1, 3, 8, 8]}, ...]`` tells."""
    told = arguments.get(f"{which}_type_shape", ())
    return [(kind, list(shape)) for entry in told for kind, shape in entry.items()]
