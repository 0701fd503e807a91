"""How much work a synthesis may take, counted and not timed: the same run on every machine."""

from __future__ import annotations

import math

from torch import fx

from edgekit.capture import CapturedModel
from edgekit.graph import WEIGHTED, OpKind, constant, op_kind

_WORK = 0.45e12
"""Multiply-accumulates of forward passes that a run may take, backward passes not counted: two to
three minutes for MobileNet-class networks on two cores of 2020's servers."""
_ROUNDS = 30, 150  # least and most updates of each sample


def affordable_rounds(model: CapturedModel, samples: int, window: tuple[int, int] | None) -> int:
    """Return how often each sample can be updated within the budget of work."""
    work = float(_multiplications(model.graph)) * samples
    if window is not None:
        height, width = model.inputs[0].shape[2:]
        work *= window[0] * window[1] / (height * width)
    least, most = _ROUNDS
    return int(min(max(_WORK / max(work, 1.0), least), most))


def _multiplications(graph: fx.GraphModule) -> int:
    """Count the multiply-accumulates of one sample in weighted layers."""
    total = 0
    for node in graph.graph.nodes:
        if op_kind(node) not in WEIGHTED:
            continue
        weight = constant(graph, node.args[1])
        if weight is None:
            continue
        positions = (
            node.meta["val"].shape[1:]
            if op_kind(node) is OpKind.LINEAR
            else (node.meta["val"].shape[2:])
        )
        per_position = weight.numel() if op_kind(node) is not OpKind.LINEAR else weight.shape[1]
        total += math.prod(int(p) for p in positions) * per_position
    return total
