"""How much work a network is, counted and not timed, so that a decision is the same everywhere."""

from __future__ import annotations

import math

from torch import fx

from edgekit.graph import WEIGHTED, OpKind, constant, op_kind


def multiplications(graph: fx.GraphModule) -> int:
    """Count the multiply-accumulates of one sample in the weighted layers."""
    total = 0
    for node in graph.graph.nodes:
        weight = constant(graph, node.args[1]) if op_kind(node) in WEIGHTED else None
        if weight is None:
            continue
        shape = [int(size) for size in node.meta["val"].shape[1:]]
        if op_kind(node) is OpKind.LINEAR:
            total += math.prod(shape) * weight.shape[1]
        else:
            total += math.prod(shape[1:]) * weight.numel()
    return total
