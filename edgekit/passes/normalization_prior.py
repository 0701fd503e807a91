"""Bounds on activations from the stored parameters of normalizations.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV
2019), section 4.2.2: a BatchNorm output has mean beta and spread |gamma|, so beta +- 6 |gamma|
covers it; the bounds pass through clamps and sums. LayerNorm, GroupNorm and InstanceNorm scale
what they have normalized by gamma and beta in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from edgekit.capture import CapturedModel
from edgekit.graph import OpKind, argument, clamp_bounds, constant, op_kind, op_name
from edgekit.quant.statistics import Statistics, TensorStatistics

SPREADS = 6.0
"""Spreads that a BatchNorm's output may be away from its mean. Its statistics are those of a whole
training set, so this is a statement on likelihood."""
BEHIND = "behind the last normalization"

_PASSES_ON = (OpKind.LAYOUT, OpKind.IDENTITY, OpKind.MAX_POOL, OpKind.GLOBAL_POOL)

_AFFINE = {"batch_norm": 1, "instance_norm": 1, "layer_norm": 2, "group_norm": 2}
"""Normalizations and the position of their gamma; beta follows it."""
_TITLES = {
    "batch_norm": "BatchNorm",
    "instance_norm": "InstanceNorm",
    "layer_norm": "LayerNorm",
    "group_norm": "GroupNorm",
}


@dataclass(frozen=True, slots=True)
class Bounds:
    """Smallest and largest value of a tensor, and the normalizations that they come from."""

    low: float
    high: float
    sources: frozenset[str]

    def rule(self, low: float, high: float) -> str:
        """Return for the report how an observed range relates to the bounds."""
        how = "cut to" if low < self.low or high > self.high else "within"
        verb = "stores" if len(self.sources) == 1 else "store"
        return f"{how} what {' and '.join(sorted(self.sources))} {verb}"


def with_normalization_prior(model: CapturedModel, statistics: Statistics) -> Statistics:
    """Return the statistics with a prior on every tensor that stored parameters bound.

    ``rule`` then says which normalization bounds a tensor and whether that cuts what was observed,
    and which tensors lie behind the last normalization, where nothing stored tells what to expect.
    """
    bounds: dict[str, Bounds] = {}
    for node in model.graph.graph.nodes:
        found = _bounds(model.graph, node, bounds)
        if found is not None:
            bounds[node.name] = found
    behind = _behind_the_last(model.graph.graph) - set(bounds)
    tensors = {
        name: _described(tensor, bounds.get(name), name in behind)
        for name, tensor in statistics.tensors.items()
    }
    return replace(statistics, tensors=tensors)


def _described(tensor: TensorStatistics, bound: Bounds | None, behind: bool) -> TensorStatistics:
    if bound is None:
        return replace(tensor, rule=f"{tensor.rule}, {BEHIND}") if behind else tensor
    rule = f"{tensor.rule}, {bound.rule(tensor.minimum, tensor.maximum)}"
    return replace(tensor, prior=(bound.low, bound.high), rule=rule)


def _behind_the_last(graph: fx.Graph) -> set[str]:
    """Return the nodes that depend on a normalization and that no normalization depends on."""
    norms = {node for node in graph.nodes if op_name(node) in _AFFINE}
    after, before = set(norms), set(norms)
    for node in graph.nodes:
        if any(source in after for source in node.all_input_nodes):
            after.add(node)
    for node in reversed(graph.nodes):
        if any(user in before for user in node.users):
            before.add(node)
    return {node.name for node in after - before}


def _bounds(graph_module: fx.GraphModule, node: fx.Node, known: dict[str, Bounds]) -> Bounds | None:
    if op_name(node) in _AFFINE:
        return _affine_bounds(graph_module, node)
    inputs = [known.get(arg.name) for arg in node.args if isinstance(arg, fx.Node)]
    present = [bound for bound in inputs if bound is not None]
    if not present or len(present) < len(inputs):
        return None
    first, kind = present[0], op_kind(node)
    if kind is OpKind.ADD and len(present) == 2:
        return _sum(first, present[1], argument(node, 2, "alpha", 1))
    if kind is OpKind.CLAMP_ZERO:
        ceiling = clamp_bounds(node)[1]
        high = max(first.high, 0.0)
        high = high if ceiling is None else min(high, ceiling)
        return replace(first, low=max(first.low, 0.0), high=high)
    if kind in _PASSES_ON:
        return first
    if kind is OpKind.ZERO_PAD or (
        kind is OpKind.AVERAGE_POOL and argument(node, 6, "divisor_override") is None
    ):  # a mean may count the zeros around the border
        return replace(first, low=min(first.low, 0.0), high=max(first.high, 0.0))
    return None


def _sum(first: Bounds, second: Bounds, factor: object) -> Bounds | None:
    """Return the bounds of ``first + factor * second``."""
    if not isinstance(factor, (int, float)):
        return None
    ends = sorted((factor * second.low, factor * second.high))
    return Bounds(first.low + ends[0], first.high + ends[1], first.sources | second.sources)


def _affine_bounds(graph_module: fx.GraphModule, node: fx.Node) -> Bounds | None:
    position = _AFFINE[op_name(node)]
    gamma = constant(graph_module, argument(node, position, "weight"))
    beta = constant(graph_module, argument(node, position + 1, "bias"))
    spreads = _spreads(node)
    if gamma is None or spreads is None:
        return None
    beta = torch.zeros_like(gamma) if beta is None else beta
    spread = spreads * gamma.abs()
    low, high = float((beta - spread).min()), float((beta + spread).max())
    return Bounds(low, high, frozenset({_TITLES[op_name(node)]}))


def _spreads(node: fx.Node) -> float | None:
    """Return how many spreads the normalized value may be away from its mean.

    What is normalized by its own mean and spread is bounded exactly: of n values with zero mean and
    unit spread none exceeds sqrt(n - 1), which one value reaches when all others are alike. Six
    spreads would not do here: a few features of real transformers are tens of spreads away in
    every sample, and all of the accuracy hangs on them. Where n is small the exact bound is also
    the tighter one. ``None`` where n varies.
    """
    name, source = op_name(node), node.args[0]
    stored = name == "instance_norm" and not argument(node, 5, "use_input_stats", True)
    if name == "batch_norm" or stored:
        return SPREADS
    assert isinstance(source, fx.Node)
    shape: Sequence[object] = source.meta["val"].shape
    if name == "layer_norm":
        axes = argument(node, 1, "normalized_shape")
        assert isinstance(axes, (list, tuple))
        sizes = shape[len(shape) - len(axes) :]
    else:
        sizes = shape[2:] if name == "instance_norm" else shape[1:]
    if not all(isinstance(size, int) for size in sizes):
        return None
    groups = argument(node, 1, "num_groups") if name == "group_norm" else 1
    assert isinstance(groups, int)
    return math.sqrt(max(math.prod(sizes) // groups - 1, 0))  # type: ignore[arg-type]
