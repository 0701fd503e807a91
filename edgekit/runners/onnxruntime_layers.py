"""Executed precision of ONNX Runtime, read from the graph that it optimized and really runs."""

from __future__ import annotations

import re
from collections.abc import Iterator

from edgekit.runners.onnx_graph import GraphNode, OnnxGraph
from edgekit.types import ExecutedLayer

# Operators on packed weights, of 4 bits unless an attribute says otherwise. They compute in float.
PACKED_OPS = frozenset({"MatMulNBits", "GatherBlockQuantized"})
# Weighted operators as they may stand in a model file.
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", *PACKED_OPS)
# What ONNX Runtime's optimizer may turn them into: integer kernels, and float kernels.
INTEGER_OPS = frozenset(
    {
        "QLinearConv",
        "ConvInteger",
        "QLinearMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "QGemm",
    }
)
FLOAT_OPS = frozenset(
    {
        *_WEIGHTED,
        "FusedConv",
        "NhwcFusedConv",
        "NhwcConv",
        "FusedGemm",
        "FusedMatMul",
        "GemmFloat8",
    }
)
_FLOAT_TYPES = ("float32", "float16", "float64", "bfloat16")
_BLOCKED_SUFFIX = "_nchwc"  # the optimizer names a blocked convolution after its output tensor


def executed_layers(original: OnnxGraph, optimized: OnnxGraph) -> list[ExecutedLayer]:
    """List the weighted layers of the optimized graph under their names in the model file.

    Args:
        original: graph of the model file.
        optimized: graph that ONNX Runtime wrote after optimizing it.

    Returns:
        Layers in execution order; a layer whose origin cannot be told keeps the optimizer's name.
    """
    return [
        ExecutedLayer(name, node.op_type, _precision(node, optimized))
        for name, node in named_layers(original, optimized)
    ]


def named_layers(original: OnnxGraph, optimized: OnnxGraph) -> list[tuple[str, GraphNode]]:
    """Name each weighted node of the optimized graph after its origin, each origin once at most."""
    nodes = [node for node in optimized.nodes if node.op_type in INTEGER_OPS | FLOAT_OPS]
    origin = _Origin(original)
    # Names that survived unchanged are certain: no guess for another node may take them.
    taken = {node.name for node in nodes if node.name in origin.names}
    names: list[str] = []
    for node in nodes:
        name = node.name
        if name not in origin.names:
            name = next((guess for guess in origin.guesses(node) if guess not in taken), name)
            taken.add(name)
        names.append(name)
    return list(zip(names, nodes, strict=True))


class _Origin:
    """Finds the node of the model file that an optimized node came from."""

    def __init__(self, graph: OnnxGraph) -> None:
        self._producer = {output: node for node in graph.nodes for output in node.outputs}
        weighted = [node for node in graph.nodes if node.op_type in _WEIGHTED]
        self.names = sorted((_label(node) for node in weighted), key=len, reverse=True)
        self._by_weight: dict[str, list[str]] = {}
        for node in weighted:
            for tensor in self._constants_of(node, graph):
                self._by_weight.setdefault(tensor, []).append(_label(node))

    def guesses(self, node: GraphNode) -> Iterator[str]:
        """Yield possible origins of a renamed node, the surest first."""
        for tensor in node.inputs:
            yield from self._by_weight.get(tensor, ())
        if node.name.endswith(_BLOCKED_SUFFIX):
            yield from self._behind(node.name.removesuffix(_BLOCKED_SUFFIX))
        # Fused nodes carry the first node's name with something appended.
        for name in self.names:
            if re.match(re.escape(name) + r"(?![0-9A-Za-z])", node.name):
                yield name
        for tensor in node.outputs:
            yield from self._behind(tensor)

    def _constants_of(self, node: GraphNode, graph: OnnxGraph) -> Iterator[str]:
        for tensor in node.inputs[1:]:
            producer = self._producer.get(tensor)
            quantized = producer is not None and producer.op_type == "DequantizeLinear"
            constant = producer.inputs[0] if producer is not None and quantized else tensor
            cast = self._producer.get(constant)
            widened = cast is not None and cast.op_type == "Cast" and cast.inputs[0]
            # The optimizer carries a cast of 4-bit codes out and keeps its result's name.
            if (widened or constant) in graph.initializers:
                yield constant

    def _behind(self, tensor: str) -> Iterator[str]:
        """Yield the nearest weighted nodes upstream of a tensor of the model file."""
        front = [tensor]
        seen: set[str] = set()
        while front:
            producers = [self._producer[name] for name in front if name in self._producer]
            front = []
            for producer in producers:
                label = _label(producer)
                if label in seen:
                    continue
                seen.add(label)
                if producer.op_type in _WEIGHTED:
                    yield label
                else:
                    front.extend(producer.inputs)


def _label(node: GraphNode) -> str:
    return node.name or node.outputs[0]


def _precision(node: GraphNode, graph: OnnxGraph) -> str:
    if node.op_type in INTEGER_OPS:
        return "int8"
    if node.op_type in PACKED_OPS:
        return f"int{node.integers.get('bits', 4)} weights, {_float_type(node, graph)} math"
    return _float_type(node, graph)


def _float_type(node: GraphNode, graph: OnnxGraph) -> str:
    types = (graph.initializers.get(tensor, "") for tensor in node.inputs)
    return next((name for name in types if name in _FLOAT_TYPES), "float32")
