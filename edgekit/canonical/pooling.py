"""Pooling in the forms that mean the same, and run on integers, in every runtime."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from edgekit.canonical.nodes import insert, only_first_read, replace, replace_first
from edgekit.graph import argument, op_name

_MAX_POOLS = {
    1: torch.ops.aten.max_pool1d.default,
    2: torch.ops.aten.max_pool2d.default,
    3: torch.ops.aten.max_pool3d.default,
}


def rewrite_pooling(graph: fx.Graph) -> None:
    """Rewrite means and maxima over all positions, and average pools beyond the edge."""
    for node in list(graph.nodes):
        name = op_name(node)
        if node.target is torch.ops.aten.mean.dim:
            _split_mean(node)
        elif name == "amax":
            _pool_maximum(node)
        elif name.startswith("adaptive_max_pool"):
            _pool_adaptive_maximum(node)
        elif name.startswith("avg_pool"):
            _count_cells_inside(node)


def _split_mean(node: fx.Node) -> None:
    """Write ``mean`` over all positions as a pooling that keeps its axes, and a flatten.

    Runtimes have an integer kernel for the former, and the latter moves no values.
    """
    if not _reduces_space(node) or argument(node, 2, "keepdim", False):
        return
    value = node.args[0].meta["val"]  # type: ignore[union-attr]
    assert isinstance(node.target, torch._ops.OpOverload)
    pooled = insert(node, node.target, (node.args[0], list(range(2, value.dim())), True))
    replace(node, insert(node, torch.ops.aten.flatten.using_ints, (pooled, 1)))


def _pool_maximum(node: fx.Node) -> None:
    """Write the maximum over all positions as a max pool, which runs on integers."""
    if not _reduces_space(node):
        return
    pooled = _max_pool(node)
    if pooled is None:
        return
    if not argument(node, 2, "keepdim", False):
        pooled = insert(node, torch.ops.aten.flatten.using_ints, (pooled, 1))
    replace(node, pooled)


def _pool_adaptive_maximum(node: fx.Node) -> None:
    """Write ``adaptive_max_pool`` to a single position as a max pool over all of them.

    ONNX has no adaptive pool; what it is translated to, OpenVINO computes wrongly on integers.
    """
    sizes, value = node.args[1], node.args[0].meta["val"]  # type: ignore[union-attr]
    assert isinstance(sizes, (list, tuple))
    if any(size != 1 for size in sizes) or value.dim() != len(sizes) + 2:
        return
    if not only_first_read(node):
        return
    pooled = _max_pool(node)
    if pooled is None:  # the size of the space is not known
        axes = list(range(2, value.dim()))
        pooled = insert(node, torch.ops.aten.amax.default, (node.args[0], axes, True))
    replace_first(node, pooled)


def _max_pool(node: fx.Node) -> fx.Node | None:
    """Insert a max pool over all positions of what ``node`` reads, if their number is fixed."""
    space = list(node.args[0].meta["val"].shape[2:])  # type: ignore[union-attr]
    if len(space) not in _MAX_POOLS or not all(isinstance(size, int) for size in space):
        return None
    return insert(node, _MAX_POOLS[len(space)], (node.args[0], space))


def _reduces_space(node: fx.Node) -> bool:
    """Whether a reduction runs over all axes but the first two, of ``[N, C, *space]``."""
    rank = node.args[0].meta["val"].dim()  # type: ignore[union-attr]
    axes = argument(node, 1, "dim", ())
    if isinstance(axes, int) or rank < 3 or not isinstance(axes, (list, tuple)):
        return False
    return sorted(int(axis) % rank for axis in axes) == list(range(2, rank))


def _count_cells_inside(node: fx.Node) -> None:
    """Let average pools divide by cells of their own input alone, as far as that is exact.

    torch counts padding by default, but no cell beyond it, where windows of ``ceil_mode`` reach;
    runtimes disagree on those. So pools whose windows stay inside lose the mode, and padding that
    is counted becomes an operator of its own.
    """
    space = int(op_name(node).removeprefix("avg_pool").removesuffix("d"))
    source = node.args[0]
    assert isinstance(source, fx.Node)
    kernel = _each(node.args[1], space)
    stride = _each(argument(node, 2, "stride") or kernel, space)
    padding = _each(argument(node, 3, "padding", 0), space)
    ceil = bool(argument(node, 4, "ceil_mode", False))
    counted = bool(argument(node, 5, "count_include_pad", True)) and any(padding)
    divisor = argument(node, 6, "divisor_override")
    results = node.meta["val"].shape[-space:]
    sizes = source.meta["val"].shape[-space:]
    if not all(isinstance(size, int) for size in sizes):
        pass  # only fixed sizes tell which windows reach beyond the edge
    elif ceil and all(map(_stays_inside, sizes, results, kernel, stride, padding)):
        ceil = False
    elif ceil and counted and divisor is None:
        around = [amount for amount in reversed(padding) for _ in range(2)]
        source = insert(node, torch.ops.aten.constant_pad_nd.default, (source, around, 0.0))
        padding, counted = [0] * space, False
    last = () if divisor is None else (divisor,)
    args = (source, kernel, stride, padding, ceil, counted, *last)
    if source is node.args[0]:
        node.args, node.kwargs = args, {}
        return
    assert isinstance(node.target, torch._ops.OpOverload)
    replace(node, _cropped(insert(node, node.target, args), results, node))


def _cropped(pooled: fx.Node, sizes: Sequence[int], before: fx.Node) -> fx.Node:
    """Leave out windows that begin in the padding at the end, as torch does."""
    rank = pooled.meta["val"].dim()
    for axis, size in enumerate(sizes, start=rank - len(sizes)):
        found = pooled.meta["val"].shape[axis]
        if isinstance(found, int) and found > size:
            pooled = insert(before, torch.ops.aten.slice.Tensor, (pooled, axis, 0, size))
    return pooled


def _each(value: object, count: int) -> list[int]:
    if isinstance(value, int):
        return [value] * count
    assert isinstance(value, (list, tuple))
    numbers = [int(number) for number in value]
    return numbers * count if len(numbers) == 1 else numbers


def _stays_inside(size: int, result: int, kernel: int, stride: int, padding: int) -> bool:
    return (result - 1) * stride + kernel <= size + 2 * padding
