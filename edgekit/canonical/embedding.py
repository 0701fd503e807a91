"""Bags of embeddings, as the lookup and the reduction that they are."""

from __future__ import annotations

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from edgekit.canonical.nodes import insert, only_first_read, replace_first
from edgekit.errors import UnsupportedError
from edgekit.graph import argument, op_name

_MEAN, _MAX = 1, 2  # codes of the operator's mode; 0 is the sum


def split_embedding_bags(graph: fx.Graph) -> None:
    """Rewrite every bag whose ids come as ``[N, L]``, one bag in each row.

    ``torch.nn.functional.embedding_bag`` flattens such ids and adds the offsets 0, L, 2L, ...,
    which ONNX can only express as a loop. Bags with offsets of their own stay as they are.

    Raises:
        UnsupportedError: the offsets of a bag are an input.
    """
    for node in list(graph.nodes):
        if op_name(node) != "embedding_bag":
            continue
        ids = _rows(node) if only_first_read(node) else None
        result = None if ids is None else _reduced(node, ids)
        if result is not None:
            replace_first(node, result)
        elif _reads_input(node.args[2]):
            raise UnsupportedError(
                f"node '{node.name}': the offsets of a bag of embeddings are an input, and random "
                "numbers are no offsets to calibrate with",
                "give the ids as a table [N, L], one bag in each row, and no offsets",
            )


def _reads_input(offsets: object) -> bool:
    """Whether offsets depend on the values of an input, and not on its size alone."""
    pending: list[object] = [offsets]
    seen: set[fx.Node] = set()
    while pending:
        node = pending.pop()
        if not isinstance(node, fx.Node) or node in seen:
            continue
        seen.add(node)
        if node.op == "placeholder":
            return True
        if not op_name(node).startswith("sym_"):
            pending.extend(node.all_input_nodes)
    return False


def _rows(node: fx.Node) -> fx.Node | None:
    """Return the ids ``[N, L]`` behind the flat ids and the regular offsets of a bag."""
    _, flat, offsets = node.args[:3]
    if not isinstance(flat, fx.Node) or not isinstance(offsets, fx.Node):
        return None
    ids = _before_flattening(flat)
    if ids is None or argument(node, 7, "include_last_offset", False):
        return None
    length = ids.meta["val"].shape[1]
    if not isinstance(length, int) or length < 1 or op_name(offsets) != "arange":
        return None
    start, total, step = _progression(offsets)
    return ids if start == 0 and step == length and _counts(total, ids) else None


def _progression(node: fx.Node) -> tuple[object, object, object]:
    """Return start, end and step of an ``arange``."""
    if len(node.args) == 1:
        return 0, node.args[0], 1
    return node.args[0], node.args[1], node.args[2] if len(node.args) > 2 else 1


def _counts(total: object, ids: fx.Node) -> bool:
    """Whether a number, or the node that computes it, is the number of all ids."""
    if isinstance(total, fx.Node):
        total = total.meta.get("val")
    return bool(statically_known_true(total == ids.meta["val"].numel()))


def _before_flattening(flat: fx.Node) -> fx.Node | None:
    if op_name(flat) not in ("reshape", "view", "flatten"):
        return None
    source = flat.args[0]
    assert isinstance(source, fx.Node)
    return source if source.meta["val"].dim() == 2 and flat.meta["val"].dim() == 1 else None


def _reduced(node: fx.Node, ids: fx.Node) -> fx.Node | None:
    """Return lookup and reduction; ``None`` for what a few operators cannot say exactly."""
    table = node.args[0]
    mode = argument(node, 4, "mode", 0)
    weights, padding = argument(node, 6, "per_sample_weights"), argument(node, 8, "padding_idx")
    looked_up = insert(node, torch.ops.aten.embedding.default, (table, ids))
    if padding is not None:
        return _without_padding(node, ids, looked_up) if mode != _MAX and weights is None else None
    if weights is not None:
        factors = insert(node, torch.ops.aten.reshape.default, (weights, [-1, *_length(ids), 1]))
        looked_up = insert(node, torch.ops.aten.mul.Tensor, (looked_up, factors))
    if mode == _MAX:
        return insert(node, torch.ops.aten.amax.default, (looked_up, [1]))
    target = torch.ops.aten.mean.dim if mode == _MEAN else torch.ops.aten.sum.dim_IntList
    return insert(node, target, (looked_up, [1]))


def _without_padding(node: fx.Node, ids: fx.Node, looked_up: fx.Node) -> fx.Node:
    """Return the sum or mean over the ids of each row that are no padding."""
    aten = torch.ops.aten
    rows = node.args[0].meta["val"].shape[0]  # type: ignore[union-attr]
    padding = int(argument(node, 8, "padding_idx")) % rows  # type: ignore[call-overload]
    real = insert(node, aten.ne.Scalar, (ids, padding))
    ones = insert(node, aten.to.dtype, (real, looked_up.meta["val"].dtype))
    column = insert(node, aten.unsqueeze.default, (ones, -1))
    kept = insert(node, aten.mul.Tensor, (looked_up, column))
    total = insert(node, aten.sum.dim_IntList, (kept, [1]))
    if argument(node, 4, "mode", 0) != _MEAN:
        return total
    count = insert(node, aten.sum.dim_IntList, (column, [1]))
    at_least_one = insert(node, aten.clamp_min.default, (count, 1))  # a row of padding is zero
    return insert(node, aten.div.Tensor, (total, at_least_one))


def _length(ids: fx.Node) -> list[int]:
    return [int(ids.meta["val"].shape[1])]
