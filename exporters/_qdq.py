"""From the template and a lowered model to an ONNX graph with QuantizeLinear/DequantizeLinear."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import (
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)
from onnxscript.rewriter import RewriteRuleSet
from onnxscript.rewriter.rules.common import (
    fuse_pad_into_conv_rule,
    normalize_pad_format_conv_rule,
)

from edgekit.lowering import LoweredModel
from edgekit.quant.affine import QParams, WeightCodes
from edgekit.sites import SitedModel, layer_names
from edgekit.template import DOMAIN, SITE_OP
from edgekit.types import TensorScheme

from ._packing import packs
from ._weight_only import dequantized

_NIBBLE = 4  # bits
_NIBBLE_OPSET = 21  # the first whose operators take 4-bit types, and blocks
_NIBBLE_TYPES = (ir.DataType.INT4, ir.DataType.UINT4)


@dataclass
class _Writer:
    """State of one realisation: the graph being rewritten and the quantizers it has so far."""

    graph: ir.Graph
    lowered: LoweredModel | None
    pairs: dict[tuple[str, QParams], ir.Value] = field(default_factory=dict)
    constants: dict[str, list[tuple[np.ndarray, np.ndarray, ir.Value]]] = field(
        default_factory=dict
    )


def realize(template: ir.Model, lowered: LoweredModel) -> ir.Model:
    """Return the QDQ graph of one target.

    Every site placeholder of the template becomes what ``lowered`` decided: a quantizer pair, an
    integer initializer with its DequantizeLinear, a corrected bias, or nothing. Absorbed clamps
    are removed, zero padding is fused into convolutions, and weighted layers carry their module
    path as node name. The opset is the template's, or 21 where the graph holds 4-bit types.
    """
    return _rewrite(template, lowered.sited, lowered)


def realize_float(template: ir.Model, sited: SitedModel) -> ir.Model:
    """Return the float graph: the template with every site removed."""
    return _rewrite(template, sited, None)


def _rewrite(template: ir.Model, sited: SitedModel, lowered: LoweredModel | None) -> ir.Model:
    model = template.clone()
    writer = _Writer(model.graph, lowered)
    names = layer_names(sited)
    for node in [n for n in model.graph if n.domain == DOMAIN and n.op_type == SITE_OP]:
        index = node.attributes["index"].as_int()
        if index in names:
            _name_layer(node, names[index])
    for node in [n for n in model.graph if n.domain == DOMAIN and n.op_type == SITE_OP]:
        _replace_site(writer, node)
    if lowered is not None:
        for name in sorted(lowered.placement.absorbed):
            _remove_clamp(model.graph, name)
    _use_global_pooling(model.graph)
    RewriteRuleSet([normalize_pad_format_conv_rule, fuse_pad_into_conv_rule]).apply_to_model(model)
    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)
    if _needs_opset_21(model.graph):
        model.opset_imports[""] = _NIBBLE_OPSET  # only adds types to the operators in use here
    model.graph.sort()
    for node in model.graph:
        node.metadata_props.clear()
    return model


def widening_casts(model: ir.Model) -> list[str]:
    """Return the names of the casts from INT4 codes to INT8 in a graph of :func:`realize`."""
    return [
        str(node.name)
        for node in model.graph
        if node.op_type == "Cast" and _is_int4(node.inputs[0])
    ]


def _is_int4(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.INT4


def _needs_opset_21(graph: ir.Graph) -> bool:
    values = [*graph.initializers.values(), *(node.outputs[0] for node in graph)]
    narrow = any(value.dtype in _NIBBLE_TYPES for value in values)
    return narrow or any("block_size" in node.attributes for node in graph)


def _name_layer(site: ir.Node, name: str) -> None:
    """Name the operator that reads a weight after its layer."""
    value = site.outputs[0]
    consumers = [use.node for use in value.uses()]
    while len(consumers) == 1 and consumers[0].op_type in ("Transpose", "Reshape", "Unsqueeze"):
        consumers = [use.node for use in consumers[0].outputs[0].uses()]
    for index, consumer in enumerate(consumers):
        consumer.name = name if index == 0 else f"{name}_{index}"


def _replace_site(writer: _Writer, node: ir.Node) -> None:
    source, output = node.inputs[0], node.outputs[0]
    assert source is not None
    index = _index(node)
    lowered = writer.lowered
    if lowered is None:
        replacement = source
    elif index in lowered.activations:
        replacement = _quantizer(writer, node, source, lowered.activations[index])
    elif index in lowered.weights:
        replacement = _weight(writer, node, source, lowered.weights[index])
    elif index in lowered.biases:
        replacement = _bias(writer, node, source, index, lowered)
    else:
        replacement = source
    _replace(writer.graph, output, replacement)
    writer.graph.remove(node, safe=True)


def _index(site: ir.Node) -> int:
    return site.attributes["index"].as_int()


def _replace(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Let ``new`` stand for ``old`` everywhere; graph outputs keep their names."""
    is_output = old.is_graph_output()
    name, old_type, old_shape = old.name, old.type, old.shape
    if is_output and (new.is_graph_output() or new.is_graph_input()):
        # an input, or a tensor that is returned twice: it has a name already
        identity, before = ir.node("Identity", [new]), old.producer()
        assert before is not None
        graph.insert_before(before, identity)
        new = identity.outputs[0]
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    if is_output:
        old.name = f"{name}_site"
        new.name = name
        new.type, new.shape = old_type, old_shape
    elif new.shape is None:
        new.type, new.shape = old_type, old_shape


def _initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape)
    )
    graph.register_initializer(value)
    return value


def _quantizer(writer: _Writer, site: ir.Node, source: ir.Value, qparams: QParams) -> ir.Value:
    """One QuantizeLinear and one DequantizeLinear for each tensor and grid, shared by readers.

    Zero points are always written: ONNX Runtime fuses Gemm only where they are explicit.
    """
    assert source.name is not None
    key = (source.name, qparams)
    if key in writer.pairs:
        return writer.pairs[key]
    name = f"{source.name}.q{len([k for k in writer.pairs if k[0] == source.name]) or ''}"
    stored = _code_type(qparams.scheme)
    if qparams.scheme.bits < stored.bitwidth:
        source = _clip(writer, site, source, qparams, name)
    scale = _initializer(writer.graph, f"{name}.scale", np.array(qparams.scale, np.float32))
    zero_point = np.array(qparams.zero_point, stored.numpy())
    zero = _initializer(writer.graph, f"{name}.zero_point", zero_point)
    quantize = ir.node("QuantizeLinear", [source, scale, zero], name=f"{name}.quantize")
    dequantize = ir.node(
        "DequantizeLinear", [quantize.outputs[0], scale, zero], name=f"{name}.dequantize"
    )
    quantize.outputs[0].name, dequantize.outputs[0].name = f"{name}.codes", f"{name}.values"
    quantize.outputs[0].type, quantize.outputs[0].shape = ir.TensorType(stored), source.shape
    dequantize.outputs[0].type, dequantize.outputs[0].shape = source.type, source.shape
    writer.graph.insert_before(site, [quantize, dequantize])
    writer.pairs[key] = dequantize.outputs[0]
    return dequantize.outputs[0]


def _code_type(scheme: TensorScheme) -> ir.DataType:
    """Return the narrowest ONNX type that holds the codes of a grid."""
    if scheme.bits <= _NIBBLE:
        return ir.DataType.INT4 if scheme.signed else ir.DataType.UINT4
    return ir.DataType.INT8 if scheme.signed else ir.DataType.UINT8


def _clip(
    writer: _Writer, site: ir.Node, source: ir.Value, qparams: QParams, name: str
) -> ir.Value:
    """Saturate where a grid ends that is narrower than the type of its codes."""
    low = _initializer(writer.graph, f"{name}.minimum", np.array(qparams.minimum, np.float32))
    high = _initializer(writer.graph, f"{name}.maximum", np.array(qparams.maximum, np.float32))
    node = ir.node("Clip", [source, low, high], name=f"{name}.clip")
    output = node.outputs[0]
    output.name, output.type, output.shape = f"{name}.clipped", source.type, source.shape
    writer.graph.insert_before(site, node)
    return output


def _weight(writer: _Writer, site: ir.Node, source: ir.Value, codes: WeightCodes) -> ir.Value:
    array, axis = codes.codes.numpy(), codes.axis
    transpose = _only_transpose(site.outputs[0])
    stored = None if writer.lowered is None else writer.lowered.stored_layer(_index(site))
    if writer.lowered is not None and stored is not None:
        if writer.lowered.profile.weight_only.keeps_layout:
            transpose = None
        order = None if transpose is None else transpose.attributes["perm"].as_ints()
        value = dequantized(writer.graph, site, source, codes, stored.bits, order)
        if transpose is not None:
            transpose.outputs[0].replace_all_uses_with(value)
        return value
    if transpose is not None:  # MatMul reads [K, N]: transpose codes, not values at run time
        order = transpose.attributes["perm"].as_ints()
        array, axis = np.ascontiguousarray(array.transpose(order)), list(order).index(axis)
    if writer.lowered is not None and packs(writer.lowered, codes):
        array = array.astype(ir.DataType.INT4.numpy())
    value = _constant(writer, site, source, array, codes.scale.numpy(), axis)
    if transpose is not None:
        transpose.outputs[0].replace_all_uses_with(value)
    return value


def _constant(
    writer: _Writer,
    site: ir.Node,
    source: ir.Value,
    codes: np.ndarray,
    scale: np.ndarray,
    axis: int,
) -> ir.Value:
    """An integer initializer with its DequantizeLinear; one for all sites that decided alike.

    A parameter that several layers share may have other codes in each of them. INT4 codes pass a
    Cast, which runtimes carry out when they load the file: their kernels then read INT8 constants.
    """
    name = str(source.name)
    known = writer.constants.setdefault(name, [])
    for other, other_scale, values in known:
        if np.array_equal(codes, other) and np.array_equal(scale, other_scale):
            return values
    name += f"_{len(known)}" if known else ""
    value = _initializer(writer.graph, f"{name}.codes", codes)
    if _is_int4(value):
        value = _widened(writer, site, value, name)
    inputs = [value, _initializer(writer.graph, f"{name}.scale", scale)]
    if value.dtype == ir.DataType.INT8:  # ONNX Runtime fuses Gemm only where they are explicit
        zeros = np.zeros(scale.shape, np.int8)
        inputs.append(_initializer(writer.graph, f"{name}.zero_point", zeros))
    node = ir.node("DequantizeLinear", inputs, {"axis": axis}, name=f"{name}.dequantize")
    output = node.outputs[0]
    output.name, output.type, output.shape = f"{name}.values", source.type, ir.Shape(codes.shape)
    writer.graph.insert_before(site, node)
    known.append((codes, scale, output))
    return output


def _widened(writer: _Writer, site: ir.Node, codes: ir.Value, name: str) -> ir.Value:
    cast = ir.node("Cast", [codes], {"to": ir.DataType.INT8}, name=f"{name}.widen")
    output = cast.outputs[0]
    output.name, output.shape = f"{name}.wide_codes", codes.shape
    output.type = ir.TensorType(ir.DataType.INT8)
    writer.graph.insert_before(site, cast)
    return output


def _only_transpose(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    if len(uses) == 1 and uses[0].node.op_type == "Transpose":
        return uses[0].node
    return None


def _bias(
    writer: _Writer, site: ir.Node, source: ir.Value, index: int, lowered: LoweredModel
) -> ir.Value:
    bias = lowered.biases[index].numpy().astype(np.float32)
    scales = lowered.bias_scales.get(index)
    if scales is None:
        name = f"{source.name}.corrected"
        taken = sum(known.startswith(name) for known in writer.graph.initializers)
        return _initializer(writer.graph, f"{name}_{taken}" if taken else name, bias)
    step = scales.numpy().astype(np.float32)
    codes = np.clip(np.round(bias / step), -(2**31), 2**31 - 1).astype(np.int32)
    return _constant(writer, site, source, codes, step, 0)


def _use_global_pooling(graph: ir.Graph) -> None:
    """Write a mean over all spatial axes as GlobalAveragePool, which runtimes run on integers."""
    for node in [n for n in graph if n.op_type == "ReduceMean"]:
        source, output = node.inputs[0], node.outputs[0]
        given = node.inputs[1] if len(node.inputs) > 1 else None
        axes = None if given is None else ir.convenience.get_const_tensor(given)
        keep = node.attributes.get("keepdims")
        if source is None or source.shape is None or axes is None:
            continue
        rank = len(source.shape)
        spatial = sorted(int(axis) % rank for axis in axes.numpy().reshape(-1))
        if rank < 3 or spatial != list(range(2, rank)) or (keep is not None and not keep.as_int()):
            continue
        pool = ir.node("GlobalAveragePool", [source], name=node.name)
        pool.outputs[0].type, pool.outputs[0].shape = output.type, output.shape
        graph.insert_before(node, pool)
        name = output.name
        _replace(graph, output, pool.outputs[0])
        graph.remove(node, safe=True)
        pool.outputs[0].name = name


def _remove_clamp(graph: ir.Graph, name: str) -> None:
    """Let the readers of a clamp read what it clamps: the quantizer behind it saturates alike."""
    for node in graph:
        if node.outputs[0].name == name and node.op_type in ("Relu", "Clip"):
            source = node.inputs[0]
            assert source is not None
            node.outputs[0].replace_all_uses_with(source)
            graph.remove(node, safe=True)
            return
