"""How much work a network is, counted and not timed, so that a decision is the same everywhere."""

from __future__ import annotations

import math

import torch
from torch import fx

from edgekit.graph import WEIGHTED, OpKind, constant, op_kind
from edgekit.sites import SITE, layer_name


def multiplications(graph: fx.GraphModule) -> int:
    """Count the multiply-accumulates of one sample in the weighted layers."""
    return sum(work_of_layers(graph).values())


def work_of_layers(graph: fx.GraphModule) -> dict[str, int]:
    """Count the multiply-accumulates of one sample in each weighted layer, by its name."""
    work: dict[str, int] = {}
    for node in graph.graph.nodes:
        weight = constant(graph, _parameter(node)) if op_kind(node) in WEIGHTED else None
        if weight is None:
            continue
        # what a transposed convolution multiplies are its inputs: its output has more positions
        counted = node.args[0] if op_kind(node) is OpKind.CONV_TRANSPOSE else node
        shape = [example_size(size) for size in counted.meta["val"].shape[1:]]
        if op_kind(node) is OpKind.LINEAR:
            count = math.prod(shape) * weight.shape[1]
        else:
            count = math.prod(shape[1:]) * weight.numel()
        name = layer_name(node)
        work[name] = work.get(name, 0) + count
    return work


def example_size(size: int | torch.SymInt) -> int:
    """Return a size as it was captured; ``int()`` would bind a variable one to that for good."""
    return int(size.node.hint) if isinstance(size, torch.SymInt) else size


def _parameter(layer: fx.Node) -> fx.node.Argument:
    weight = layer.args[1]
    while isinstance(weight, fx.Node) and weight.target is SITE:
        weight = weight.args[0]
    return weight
