"""Attention masks whose minus infinity is a number that every format holds.

With ``-inf`` or the least float32 in it, a mask has no range to observe, no FP16 form, and a row in
which everything is hidden gives NaN.
"""

from __future__ import annotations

import torch
from torch import fx

from edgekit.canonical.nodes import insert
from edgekit.graph import OpKind, argument, constant, is_float_tensor, op_kind, op_name

HIDDEN = -30000.0
"""What hidden scores get. An exponential of it is zero wherever one score of the row is not hidden;
FP16 holds it exactly, with as much room again for the score that it is added to."""

_NUMBERS = frozenset(
    {"where", "masked_fill", "full", "full_like", "new_full", "fill", "scalar_tensor", "mul", "add"}
)
_MOVES = frozenset({"to", "_to_copy", "triu", "tril", "expand_as", "lift_fresh_copy"})


def bound_masks(graph_module: fx.GraphModule) -> None:
    """Raise what lies below :data:`HIDDEN` to it, where nothing but a softmax sees it.

    Boolean masks of ``scaled_dot_product_attention`` become the numbers that they stand for.
    """
    graph = graph_module.graph
    _write_booleans_as_numbers(graph)
    for node in _before_softmax(graph):
        if op_name(node) in _NUMBERS:
            node.args = tuple(map(_bounded, node.args))
        value = constant(graph_module, node)
        if value is not None and is_float_tensor(node) and bool((value < HIDDEN).any()):
            _clamp(node)


def _write_booleans_as_numbers(graph: fx.Graph) -> None:
    for node in graph.find_nodes(
        op="call_function", target=torch.ops.aten.scaled_dot_product_attention.default
    ):
        mask = argument(node, 3, "attn_mask")
        if isinstance(mask, fx.Node) and mask.meta["val"].dtype == torch.bool:
            numbers = insert(node, torch.ops.aten.where.Scalar, (mask, 0.0, HIDDEN))
            node.replace_input_with(mask, numbers)


def _before_softmax(graph: fx.Graph) -> list[fx.Node]:
    """Return the nodes whose values reach nothing but the scores of a softmax."""
    found: dict[fx.Node, None] = {}
    for node in reversed(graph.nodes):
        passes = (
            op_name(node) in _NUMBERS | _MOVES
            or op_kind(node) in (OpKind.LAYOUT, OpKind.IDENTITY)
            or node.op == "get_attr"
        )
        if passes and node.users and all(_scores(u, node) or u in found for u in node.users):
            found[node] = None
    return list(found)


def _scores(user: fx.Node, node: fx.Node) -> bool:
    """Whether ``user`` is a softmax over ``node``, or attention with ``node`` as its mask."""
    if op_name(user) == "scaled_dot_product_attention":
        return argument(user, 3, "attn_mask") is node and node not in user.args[:3]
    return op_name(user) in ("softmax", "_softmax") and user.args[0] is node


def _bounded(value: fx.node.Argument) -> fx.node.Argument:
    return max(value, HIDDEN) if isinstance(value, (int, float)) else value


def _clamp(node: fx.Node) -> None:
    readers = list(node.users)
    clamped = insert(min(readers), torch.ops.aten.clamp_min.default, (node, HIDDEN))
    for reader in readers:
        reader.replace_input_with(node, clamped)
