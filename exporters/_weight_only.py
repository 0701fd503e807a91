"""Weight-only layers in ONNX: integer weights behind a DequantizeLinear, or in packed kernels.

The portable form is an INT4 or INT8 initializer, a DequantizeLinear (in blocks from opset 21 on)
and the float operator. TensorRT and OpenVINO keep such weights packed. ONNX Runtime would unpack
them at every call, or form its own operators where the pattern happens to fit: for it they are
written as MatMulNBits and GatherBlockQuantized.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgekit.lowering import LoweredModel
from edgekit.quant.affine import WeightCodes
from edgekit.sites import layer_names

KEPT_FLOAT = (
    "activations stay float: the model sets DYNAMIC_QUANTIZATION_GROUP_SIZE to 0; compiled with "
    "32, CPUs with VNNI round them to INT8 at run time, which is faster and less exact"
)
_DOMAIN = "com.microsoft"
_NIBBLE = 4
# Block sizes with kernels of their own in ONNX Runtime; a row of any other length ends in padding.
_KERNEL_BLOCKS = (256, 128, 64, 32, 16)


def dequantized(
    graph: ir.Graph,
    site: ir.Node,
    source: ir.Value,
    codes: WeightCodes,
    width: int,
    order: Sequence[int] | None,
) -> ir.Value:
    """Write the codes of a weight-only layer as an initializer, and the node that unpacks it.

    Args:
        graph: the graph; one initializer serves all sites of a parameter in the same order.
        site: placeholder node, before which the new node stands.
        source: the float weight.
        codes: what to write.
        width: 4 or 8, of the integers in the file.
        order: permutation of the axes that the reader wants, if another than the weight's own.
    """
    name = f"{source.name}.stored" + ("" if order is None else "_transposed")
    known = graph.initializers.get(f"{name}.codes")
    if known is not None:
        unpacked: ir.Value = next(iter(known.uses())).node.outputs[0]
        return unpacked
    array, scale, axis = codes.codes.numpy(), codes.scale.numpy(), codes.axis
    attributes = {} if codes.block is None else {"block_size": codes.block}
    if codes.block is not None:
        axis = 1  # of the inputs, which the blocks divide
    if order is not None:
        array, axis = array.transpose(order), list(order).index(axis)
        scale = scale.transpose(order) if codes.block is not None else scale
    stored = _initializer(graph, f"{name}.codes", _narrow(array, width))
    scales = _initializer(graph, f"{name}.scale", scale)
    node = ir.node(
        "DequantizeLinear", [stored, scales], {"axis": axis, **attributes}, name=f"{name}.unpack"
    )
    output = node.outputs[0]
    output.name, output.type, output.shape = f"{name}.values", source.type, ir.Shape(array.shape)
    graph.insert_before(site, node)
    return output


def use_packed_operators(model: ir.Model, lowered: LoweredModel) -> None:
    """Replace what reads stored weights by ONNX Runtime's operators for them.

    Args:
        model: a graph of :func:`~edgekit.exporters._qdq.realize`; it is changed.
        lowered: the decisions behind it.
    """
    layers = _stored_layers(lowered)
    for node in list(model.graph):
        codes = layers.get(str(node.name))
        write = _WRITERS.get(node.op_type)
        if codes is None or write is None:
            continue
        packed = write(model.graph, node, codes)
        output, made = node.outputs[0], packed.outputs[0]
        made.name, made.type, made.shape = output.name, output.type, output.shape
        model.graph.insert_before(node, packed)
        output.replace_all_uses_with(made, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
        model.opset_imports[_DOMAIN] = 1
    RemoveUnusedNodesPass()(model)


def keep_activations_float(model: Any) -> None:
    """Stop OpenVINO from quantizing the activations of weight-only layers at run time.

    Its CPU plugin does so by itself where the CPU has VNNI; a weight-only scheme says otherwise.

    Args:
        model: an ``openvino.Model``; it is changed.
    """
    model.set_rt_info("0", ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])


def _stored_layers(lowered: LoweredModel) -> dict[str, WeightCodes]:
    """Return the codes of every weight-only layer by the name of its node in the ONNX graph."""
    names = layer_names(lowered.sited)
    return {names[i]: codes for i, codes in lowered.weights.items() if lowered.stored_layer(i)}


def _matmul_nbits(graph: ir.Graph, node: ir.Node, codes: WeightCodes) -> ir.Node:
    """Return a product with weights in blocks along the inputs, packed row by row."""
    outputs, inputs = codes.codes.shape
    width = _NIBBLE if codes.bits <= _NIBBLE else 8
    block = codes.block or _smallest_file(inputs, width)
    blocks = -(-inputs // block)
    middle = 1 << width - 1
    array = np.full((outputs, blocks * block), middle, np.uint8)
    array[:, :inputs] = codes.codes.numpy().astype(np.int16) + middle
    scale = codes.scale.numpy().reshape(outputs, -1)
    if codes.block is None:
        scale = scale.repeat(blocks, axis=1)
    packed = array[:, 0::2] | (array[:, 1::2] << _NIBBLE) if width == _NIBBLE else array
    stored = _initializer(
        graph, f"{node.name}.packed", packed.reshape(outputs, blocks, block * width // 8)
    )
    scales = _initializer(graph, f"{node.name}.scales", scale.reshape(-1))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    sizes = {"K": inputs, "N": outputs, "bits": width, "block_size": block}
    return ir.node(
        "MatMulNBits",
        [node.inputs[0], stored, scales, *([None, None, bias] if bias is not None else [])],
        sizes,
        domain=_DOMAIN,
        name=node.name,
    )


def _smallest_file(inputs: int, width: int) -> int:
    """Return the block in which a row with one scale takes the fewest bytes."""

    def size(block: int) -> int:
        blocks = -(-inputs // block)
        return blocks * (block * width // 8 + np.dtype(np.float32).itemsize)

    return min(_KERNEL_BLOCKS, key=size)


def _gather(graph: ir.Graph, node: ir.Node, codes: WeightCodes) -> ir.Node:
    """Return a lookup in a table with one scale for each row: one block, which may be longer."""
    columns = codes.codes.shape[1]
    array = codes.codes.numpy()
    wide = codes.bits > _NIBBLE
    stored = _initializer(
        graph,
        f"{node.name}.packed",
        (array.astype(np.int16) + 128).astype(np.uint8) if wide else _narrow(array, codes.bits),
    )
    scales = _initializer(graph, f"{node.name}.scales", codes.scale.numpy().reshape(-1, 1))
    sizes = {
        "gather_axis": 0,
        "quantize_axis": 1,
        "block_size": max(_KERNEL_BLOCKS[-1], 1 << (columns - 1).bit_length()),
    }
    return ir.node(
        "GatherBlockQuantized",
        [stored, node.inputs[1], scales],
        {**sizes, "bits": 8} if wide else sizes,
        domain=_DOMAIN,
        name=node.name,
    )


_WRITERS: Mapping[str, Callable[[ir.Graph, ir.Node, WeightCodes], ir.Node]] = {
    "MatMul": _matmul_nbits,
    "Gemm": _matmul_nbits,
    "Gather": _gather,
}


def _narrow(array: np.ndarray, width: int) -> np.ndarray:
    """Return codes in the ONNX integers of a width, in memory as their axes say."""
    plain = np.ascontiguousarray(array)
    return plain.astype(ir.DataType.INT4.numpy()) if width == _NIBBLE else plain


def _initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(
        name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape)
    )
    graph.register_initializer(value)
    return value
