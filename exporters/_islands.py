"""Which operators of a TensorRT graph keep FP32 types although the rest becomes FP16.

An integer kernel takes codes and returns codes; the type written between its DequantizeLinear and
QuantizeLinear is only the type of its epilogue's arithmetic. FP32 there costs nothing, keeps the
scales as they are (with FP16 scales the builder converts each one and warns), and rounds once.
Where a kernel returns floats to pointwise operators, FP16 types halve the bytes that it writes.
"""

from __future__ import annotations

import onnx_ir as ir

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_EPILOGUE = frozenset({"Clip", "Relu", "Add"})
_ENDS = frozenset({"QuantizeLinear", "ReduceMean", "GlobalAveragePool", "Flatten", "Reshape"})


def float32_islands(model: ir.Model) -> frozenset[str]:
    """Return the names of the nodes that stay in FP32.

    These are integer operators whose results pass through clamps and sums into a quantizer, a
    reduction or a network output, those clamps and sums, and the quantizer pairs around them.
    Another integer operator that reads one of those pairs stays in FP32 too: the builder demands
    one type for the scales of both its operands.
    """
    kept: set[ir.Node] = set()
    weighted = [node for node in model.graph if node.op_type in _WEIGHTED and _reads_codes(node)]
    for node in weighted:
        chain = _epilogue(node)
        if chain is not None:
            kept |= {node, *chain}
    pairs = _pairs_around(model, kept)
    while more := {node for node in weighted if node not in kept and pairs & set(_operands(node))}:
        kept |= more
        pairs = _pairs_around(model, kept)
    return frozenset(str(node.name) for node in kept | pairs)


def _pairs_around(model: ir.Model, kept: set[ir.Node]) -> set[ir.Node]:
    """Return the quantizers before and behind ``kept``; both halves of a pair take one type."""
    around: set[ir.Node] = set()
    for node in kept:
        around |= {n for n in _producers(node) if n.op_type == "DequantizeLinear"}
        around |= {n for n in _consumers(node) if n.op_type == "QuantizeLinear"}
    for node in model.graph:
        if node.op_type == "QuantizeLinear" and around & set(_consumers(node)):
            around.add(node)
        if node.op_type == "DequantizeLinear" and around & set(_producers(node)):
            around.add(node)
    return around


def _operands(node: ir.Node) -> list[ir.Node]:
    return [producer for producer in _producers(node)[:2] if producer.op_type == "DequantizeLinear"]


def _reads_codes(node: ir.Node) -> bool:
    """Whether a quantizer stands before it; weights alone as integers make no integer kernel."""
    source = node.inputs[0]
    producer = None if source is None else source.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def _epilogue(node: ir.Node) -> set[ir.Node] | None:
    """Return the clamps and sums behind ``node``, or ``None`` where other operators read it."""
    chain: set[ir.Node] = set()
    pending = [node]
    while pending:
        for consumer in _consumers(pending.pop()):
            if consumer.op_type in _EPILOGUE:
                if consumer not in chain:
                    chain.add(consumer)
                    pending.append(consumer)
            elif consumer.op_type not in _ENDS and consumer.op_type not in _WEIGHTED:
                return None
    return chain


def _producers(node: ir.Node) -> list[ir.Node]:
    found = []
    for value in node.inputs:
        producer = None if value is None else value.producer()
        if producer is not None:
            found.append(producer)
    return found


def _consumers(node: ir.Node) -> list[ir.Node]:
    return [use.node for output in node.outputs for use in output.uses()]
