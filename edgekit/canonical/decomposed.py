"""Operators that ``ExportedProgram.run_decompositions`` took apart, put together again."""

from __future__ import annotations

import torch
from torch import fx

from edgekit.canonical.nodes import insert, only_first_read, replace, replace_first

_CONVOLUTIONS = {
    (False, 1): torch.ops.aten.conv1d.default,
    (False, 2): torch.ops.aten.conv2d.default,
    (False, 3): torch.ops.aten.conv3d.default,
    (True, 1): torch.ops.aten.conv_transpose1d.default,
    (True, 2): torch.ops.aten.conv_transpose2d.input,
    (True, 3): torch.ops.aten.conv_transpose3d.input,
}


def restore_operators(graph: fx.Graph) -> None:
    """Write BatchNorm, LayerNorm and convolutions as the one operator that each of them was."""
    _restore_batch_norm(graph)
    _restore_layer_norm(graph)
    _restore_convolution(graph)


def _restore_batch_norm(graph: fx.Graph) -> None:
    native = torch.ops.aten._native_batch_norm_legit_no_training.default
    for node in graph.find_nodes(op="call_function", target=native):
        *tensors, momentum, epsilon = node.args
        if only_first_read(node):  # mean and spread beside it are of no use in evaluation
            args = (*tensors, False, momentum, epsilon, False)
            replace_first(node, insert(node, torch.ops.aten.batch_norm.default, args))


def _restore_layer_norm(graph: fx.Graph) -> None:
    native = torch.ops.aten.native_layer_norm.default
    for node in graph.find_nodes(op="call_function", target=native):
        if only_first_read(node):
            replace_first(node, insert(node, torch.ops.aten.layer_norm.default, node.args))


def _restore_convolution(graph: fx.Graph) -> None:
    general = torch.ops.aten.convolution.default
    for node in graph.find_nodes(op="call_function", target=general):
        x, weight, bias, stride, padding, dilation, transposed, extra, groups = node.args
        target = _CONVOLUTIONS.get((transposed, len(stride)))
        if target is None or node.args[0].meta["val"].dim() != len(stride) + 2:
            continue
        last = (extra, groups, dilation) if transposed else (dilation, groups)
        replace(node, insert(node, target, (x, weight, bias, stride, padding, *last)))
