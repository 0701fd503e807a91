"""Fold BatchNorm into the convolution or linear layer before it.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference" (CVPR 2018), section 3.2: W' = W * gamma / sqrt(var + eps).
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, fx

from edgekit.capture import CapturedModel
from edgekit.graph import OpKind, argument, constant, foldable_layer, op_kind, store
from edgekit.quant.statistics import Statistics


def fold_batchnorm(
    model: CapturedModel, statistics: Statistics
) -> tuple[CapturedModel, Statistics]:
    """Return a model without foldable BatchNorms, and the statistics under the new node names.

    See :func:`edgekit.graph.foldable_layer` for what can be folded. A weight shared by several
    layers is copied for each folded one. Other BatchNorms stay as they are.
    """
    graph_module = copy.deepcopy(model.graph)
    graph = graph_module.graph
    tensors = dict(statistics.tensors)
    for node in list(graph.nodes):
        layer = foldable_layer(graph_module, node)
        if layer is None:
            continue
        weight, bias = _folded(graph_module, layer, node)
        _set_parameters(graph_module, layer, weight, bias)
        node.replace_all_uses_with(layer)
        if node.name in tensors:
            stored = _output_statistics(graph_module, node)
            tensors[layer.name] = replace(tensors.pop(node.name), stored=stored)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()
    return replace(model, graph=graph_module), replace(statistics, tensors=tensors)


def _folded(graph_module: fx.GraphModule, layer: fx.Node, norm: fx.Node) -> tuple[Tensor, Tensor]:
    weight = constant(graph_module, layer.args[1])
    mean, var = constant(graph_module, norm.args[3]), constant(graph_module, norm.args[4])
    assert weight is not None and mean is not None and var is not None
    gamma, beta = constant(graph_module, norm.args[1]), constant(graph_module, norm.args[2])
    eps = argument(norm, 7, "eps", 1e-5)
    assert isinstance(eps, float)
    # float64: the fold is done once and its rounding would otherwise add to every comparison
    factor = (var.double() + eps).rsqrt() * (1.0 if gamma is None else gamma.double())
    bias = constant(graph_module, argument(layer, 2, "bias"))
    shift = (0.0 if bias is None else bias.double()) - mean.double()
    new_bias = shift * factor + (0.0 if beta is None else beta.double())
    scaled = weight.double() * _per_output(factor, weight, layer)
    return scaled.to(weight.dtype), new_bias.to(weight.dtype)


def _output_statistics(graph_module: fx.GraphModule, norm: fx.Node) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of each channel behind a BatchNorm: beta and |gamma|.

    A channel that never varied in training has a deviation below gamma: epsilon takes its share.
    """
    var = constant(graph_module, norm.args[4])
    assert var is not None
    gamma, beta = constant(graph_module, norm.args[1]), constant(graph_module, norm.args[2])
    eps = argument(norm, 7, "eps", 1e-5)
    assert isinstance(eps, float)
    deviation = (var / (var + eps)).sqrt()
    mean = torch.zeros_like(deviation) if beta is None else beta.detach()
    return mean, deviation if gamma is None else deviation * gamma.detach().abs()


def _per_output(factor: Tensor, weight: Tensor, layer: fx.Node) -> Tensor:
    """Shape ``factor`` ``[C_out]`` to broadcast over the layer's weight."""
    ones = (1,) * (weight.dim() - 2)
    if op_kind(layer) is not OpKind.CONV_TRANSPOSE:
        return factor.reshape(-1, 1, *ones)
    # transposed convolution: [C_in, C_out / groups, ...], groups are consecutive runs of C_in
    groups = factor.numel() // weight.shape[1]
    rows = factor.reshape(groups, 1, weight.shape[1])
    return rows.expand(-1, weight.shape[0] // groups, -1).reshape(
        weight.shape[0], weight.shape[1], *ones
    )


def _set_parameters(
    graph_module: fx.GraphModule, layer: fx.Node, weight: Tensor, bias: Tensor
) -> None:
    """Give ``layer`` its own weight and bias, named after the weight it had."""
    attribute = layer.args[1]
    assert isinstance(attribute, fx.Node)
    name = str(attribute.target)
    graph = graph_module.graph
    if (
        sum(str(n.target) == name for n in graph.find_nodes(op="get_attr", target=name)) > 1
        or len(attribute.users) > 1
    ):
        name = _unused_name(graph_module, name)
    bias_name = _unused_name(graph_module, name.removesuffix("weight") + "folded_bias")
    store(graph_module, name, weight)
    store(graph_module, bias_name, bias)
    with graph.inserting_before(layer):
        weight_node = graph.get_attr(name)
        bias_node = graph.get_attr(bias_name)
    weight_node.meta["val"], bias_node.meta["val"] = weight, bias
    layer.args = (layer.args[0], weight_node, bias_node, *layer.args[3:])
    layer.kwargs = {key: value for key, value in layer.kwargs.items() if key != "bias"}


def _unused_name(graph_module: fx.GraphModule, wanted: str) -> str:
    known = set(graph_module.state_dict())
    name, index = wanted, 1
    while name in known:
        name, index = f"{wanted}_{index}", index + 1
    return name
