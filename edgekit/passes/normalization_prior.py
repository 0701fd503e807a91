"""Bounds on activations from the stored parameters of normalizations.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV
2019), section 4.2.2: a BatchNorm output has mean beta and spread |gamma|, so beta +- 6 |gamma|
covers it; the bounds pass through clamps and sums. LayerNorm, GroupNorm and InstanceNorm scale
what they have normalized by gamma and beta in the same way.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from edgekit.capture import CapturedModel
from edgekit.graph import OpKind, argument, clamp_bounds, constant, op_kind, op_name
from edgekit.quant.statistics import Statistics

SPREADS = 6.0
_PASSES_ON = (OpKind.LAYOUT, OpKind.IDENTITY, OpKind.MAX_POOL, OpKind.AVERAGE_POOL)

_AFFINE = {"batch_norm": 1, "instance_norm": 1, "layer_norm": 2, "group_norm": 2}
"""Normalizations and the position of their gamma; beta follows it."""

Bounds = tuple[float, float]


def with_normalization_prior(model: CapturedModel, statistics: Statistics) -> Statistics:
    """Return the statistics with a prior on every tensor that stored parameters bound."""
    bounds: dict[fx.Node, Bounds] = {}
    for node in model.graph.graph.nodes:
        found = _bounds(model.graph, node, bounds)
        if found is not None:
            bounds[node] = found
    priors = {node.name: bound for node, bound in bounds.items()}
    tensors = {
        name: replace(tensor, prior=priors[name]) if name in priors else tensor
        for name, tensor in statistics.tensors.items()
    }
    return replace(statistics, tensors=tensors)


def _bounds(
    graph_module: fx.GraphModule, node: fx.Node, known: dict[fx.Node, Bounds]
) -> Bounds | None:
    kind = op_kind(node)
    if op_name(node) in _AFFINE:
        return _affine_bounds(graph_module, node)
    inputs = [known.get(arg) for arg in node.args if isinstance(arg, fx.Node)]
    if not inputs or any(bound is None for bound in inputs):
        return None
    present = [bound for bound in inputs if bound is not None]
    low, high = present[0]
    if kind is OpKind.ADD and len(present) == 2:
        return low + present[1][0], high + present[1][1]
    if kind is OpKind.CLAMP_ZERO:
        ceiling = clamp_bounds(node)[1]
        return max(low, 0.0), max(high, 0.0) if ceiling is None else min(max(high, 0.0), ceiling)
    if kind in (*_PASSES_ON, OpKind.GLOBAL_POOL):
        return low, high
    if kind is OpKind.ZERO_PAD:
        return min(low, 0.0), max(high, 0.0)
    return None


def _affine_bounds(graph_module: fx.GraphModule, node: fx.Node) -> Bounds | None:
    position = _AFFINE[op_name(node)]
    gamma = constant(graph_module, argument(node, position, "weight"))
    beta = constant(graph_module, argument(node, position + 1, "bias"))
    if gamma is None:
        return None
    beta = torch.zeros_like(gamma) if beta is None else beta
    spread = SPREADS * gamma.abs()
    return float((beta - spread).min()), float((beta + spread).max())
