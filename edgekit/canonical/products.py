"""Matrix products with a constant, as the linear layers that they are.

``x @ W`` is ``linear(x, W.T)`` and ``W @ x`` is that again with the last two axes of ``x`` and of
the result exchanged. Only the layout of the constant differs, not what is multiplied and summed.
"""

from __future__ import annotations

import torch
from torch import fx

from edgekit.canonical.nodes import insert, replace
from edgekit.graph import activation_nodes, argument, op_name

_LINEAR = torch.ops.aten.linear.default
_TRANSPOSE = torch.ops.aten.transpose.int
_TRANSPOSES = ("t", "numpy_T", "transpose", "permute")


def write_products_as_linear(graph: fx.Graph) -> None:
    """Replace products of an activation and a constant matrix, and take over biases behind them."""
    fixed = _fixed(graph)
    for node in list(graph.nodes):
        name = op_name(node)
        if name in ("matmul", "mm"):
            _rewrite_product(node, fixed)
        elif name == "addmm":
            _rewrite_sum_and_product(node, fixed)
    fixed = _fixed(graph)
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor):
        _take_over_bias(node, fixed)


def _fixed(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that depend on no input."""
    return set(graph.nodes) - activation_nodes(graph)


def _rewrite_product(node: fx.Node, fixed: set[fx.Node]) -> None:
    left, right = node.args
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
        return
    if left not in fixed and _is_matrix(right, fixed) and left.meta["val"].dim() >= 2:
        replace(node, insert(node, _LINEAR, (left, _transposed(right, node))))
    elif right not in fixed and _is_matrix(left, fixed) and right.meta["val"].dim() >= 3:
        turned = insert(node, _TRANSPOSE, (right, -2, -1))
        product = insert(node, _LINEAR, (turned, left))
        replace(node, insert(node, _TRANSPOSE, (product, -2, -1)))


def _rewrite_sum_and_product(node: fx.Node, fixed: set[fx.Node]) -> None:
    bias, x, weight = node.args
    if not isinstance(bias, fx.Node) or not isinstance(x, fx.Node):
        return
    plain = argument(node, 3, "beta", 1) == 1 and argument(node, 4, "alpha", 1) == 1
    outputs = node.meta["val"].shape[-1]
    if plain and x not in fixed and _is_matrix(weight, fixed) and _is_bias(bias, outputs, fixed):
        assert isinstance(weight, fx.Node)
        args = (x, _transposed(weight, node), _flat(bias, node))
        replace(node, insert(node, _LINEAR, args))


def _take_over_bias(node: fx.Node, fixed: set[fx.Node]) -> None:
    """Write ``linear(x, W) + b`` as ``linear(x, W, b)``."""
    if node.kwargs.get("alpha", 1) != 1:
        return
    for layer, bias in (node.args, node.args[::-1]):
        if not isinstance(layer, fx.Node) or layer.target is not _LINEAR or layer in fixed:
            continue
        outputs = layer.meta["val"].shape[-1]
        if (
            len(layer.users) == 1
            and argument(layer, 2, "bias") is None
            and isinstance(bias, fx.Node)
            and bias.meta["val"].dim() <= layer.meta["val"].dim()
            and _is_bias(bias, outputs, fixed)
        ):
            x, weight = layer.args[:2]
            whole = insert(node, _LINEAR, (x, weight, _flat(bias, node)))
            whole.meta.update({k: v for k, v in layer.meta.items() if k != "val"})
            replace(node, whole)
            node.graph.erase_node(layer)
            return


def _is_matrix(node: object, fixed: set[fx.Node]) -> bool:
    if not isinstance(node, fx.Node) or node not in fixed:
        return False
    return bool(node.meta["val"].dim() == 2)


def _is_bias(node: fx.Node, outputs: int, fixed: set[fx.Node]) -> bool:
    """Whether a constant holds one number for each of the last axis' ``outputs``."""
    shape = node.meta["val"].shape
    return node in fixed and len(shape) >= 1 and shape[-1] == outputs == shape.numel()


def _flat(bias: fx.Node, before: fx.Node) -> fx.Node:
    if bias.meta["val"].dim() == 1:
        return bias
    return insert(before, torch.ops.aten.reshape.default, (bias, [-1]))


def _transposed(weight: fx.Node, before: fx.Node) -> fx.Node:
    """Return the transposed matrix; for one that is transposed already, what it was before."""
    if op_name(weight) in _TRANSPOSES:
        source = weight.args[0]
        assert isinstance(source, fx.Node)
        before_it, after_it = source.meta["val"].shape, weight.meta["val"].shape
        exchanged = op_name(weight) != "permute" or _exchanges(weight.args[1])
        if tuple(before_it) == tuple(after_it)[::-1] and len(before_it) == 2 and exchanged:
            return source
    return insert(before, _TRANSPOSE, (weight, 0, 1))


def _exchanges(order: object) -> bool:
    return isinstance(order, (list, tuple)) and [int(axis) % 2 for axis in order] == [1, 0]
