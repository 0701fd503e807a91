"""A float network with inputs that it sees as it would see real ones.

Rounding weights well and correcting biases by measurement need inputs on which every layer is
driven as in use. Synthesized inputs are such. The structured noise of forward-only calibration is
not: there, BatchNorms in batch mode make every layer's output what it is on real data. Folded, that
pass is a network of its own, the *twin*: each layer with a BatchNorm behind it has its output
rescaled so that every channel has its stored mean and deviation on the noise. The twin's weights
are those of the network but for one factor for each output channel. Integer codes do not change
with such a factor, only their scales do; so codes that are good for the twin are good for the
network (our own method).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from edgekit.graph import WEIGHTED, OpKind, argument, constant, op_kind, store
from edgekit.quant.statistics import Statistics
from edgekit.sites import SITE, SitedModel

_MOST = 100.0
"""Largest factor, and the inverse of the least. A channel that the noise leaves constant would be
blown up out of rounding; one that is constant on real data must not come to dominate either."""
_LARGEST = 5 << 24
"""Values of the largest tensor of a pass: a third of a GB, and as much for the quantized half. For
EfficientNet-Lite0 this is 64 samples; with 27 of them its last layers have hardly more positions
than inputs, and agreement at W4A8 was 2 points lower."""


@dataclass(frozen=True)
class Reference:
    """The float network, or its twin, with inputs for it.

    Attributes:
        graph: the sited graph that computes it.
        inputs: one tensor for each network input, samples along axis 0.
        factors: what each rescaled layer's output channels are multiplied by, ``[C_out]``, by the
            name of the layer's node.
    """

    graph: fx.GraphModule
    inputs: tuple[Tensor, ...]
    factors: Mapping[str, Tensor] = field(default_factory=dict)


def reference_of(sited: SitedModel, statistics: Statistics) -> Reference | None:
    """Return what rounding can be measured on, or ``None`` where there are no inputs.

    All samples pass at once, so as many are used as keep the largest tensor small. A network whose
    batch is fixed has no reference.

    Args:
        sited: the network without BatchNorms, with its sites.
        statistics: of its activations, with the inputs that they were observed on.
    """
    made, model = statistics.inputs, sited.model
    if made is None or not model.batch:
        return None
    inputs = next(made.batches(_affordable(model.graph, len(made))))
    if not statistics.altered:
        return Reference(model.graph, inputs)
    graph = copy.deepcopy(model.graph)
    with torch.no_grad():
        rescaling = _Rescaling(graph, statistics)
        rescaling.run(*inputs)
    return Reference(graph, inputs, rescaling.factors)


class _Rescaling(fx.Interpreter):
    """Gives every layer with stored statistics the output that has them, and keeps the factors."""

    def __init__(self, graph: fx.GraphModule, statistics: Statistics) -> None:
        super().__init__(graph)
        self.factors: dict[str, Tensor] = {}
        self._statistics = statistics

    def run_node(self, n: fx.Node) -> object:
        if op_kind(n) is OpKind.BATCH_NORM:
            self._renormalize(n)
        value = super().run_node(n)
        tensor = self._statistics.tensors.get(n.name)
        if tensor is None or tensor.stored is None or not _can_rescale(n):
            return value
        assert isinstance(value, Tensor)
        axis = channel_axis(n, value)
        if value.numel() == value.shape[axis]:
            return value  # one value for each channel has no spread
        mean, deviation = tensor.stored
        others = [other for other in range(value.dim()) if other != axis]
        found = value.std(others, correction=0)
        factor = deviation / found.clamp_min(1e-12)
        factor = torch.where(factor > _MOST, 1.0, factor).clamp_min(1 / _MOST)
        shift = mean - factor * value.mean(others)
        self.factors[n.name] = factor
        assert isinstance(self.module, fx.GraphModule)
        _rescale(self.module, n, factor, shift)
        return value * along(factor, axis, value) + along(shift, axis, value)

    def _renormalize(self, n: fx.Node) -> None:
        """Let a BatchNorm that was not folded store what the noise has."""
        x = self.env[n.args[0]]  # type: ignore[index]
        assert isinstance(x, Tensor) and isinstance(self.module, fx.GraphModule)
        mean, variance = (constant(self.module, n.args[k]) for k in (3, 4))
        if mean is None or variance is None or x.numel() == x.shape[1]:
            return
        others = [axis for axis in range(x.dim()) if axis != 1]
        found = x.var(others, correction=0)
        found = torch.where(found * _MOST**2 < variance, variance, found)
        for stored, value in ((n.args[3], x.mean(others)), (n.args[4], found)):
            store(self.module, str(_parameter_node(stored).target), value)


def pooled_input(layer: fx.Node) -> fx.Node | None:
    """Return the pooling over all positions whose result a layer reads, or ``None``.

    In a twin the positions of an input have nothing to do with one another. What is left of their
    mean says little of how the channels of a real mean go together.
    """
    source = layer.args[0]
    while isinstance(source, fx.Node) and (
        source.target is SITE or op_kind(source) in (OpKind.LAYOUT, OpKind.IDENTITY)
    ):
        source = source.args[0]
    found = isinstance(source, fx.Node) and op_kind(source) is OpKind.GLOBAL_POOL
    return source if found else None  # type: ignore[return-value]


def _can_rescale(layer: fx.Node) -> bool:
    kind = op_kind(layer)
    if kind is OpKind.CONV_TRANSPOSE and argument(layer, 6, "groups", 1) != 1:
        return False
    return kind in WEIGHTED and layer.args[2] is not None  # folding gave it a bias


def _rescale(graph: fx.GraphModule, layer: fx.Node, factor: Tensor, shift: Tensor) -> None:
    weight_node, bias_node = (_parameter_node(argument) for argument in layer.args[1:3])
    weight, bias = constant(graph, weight_node), constant(graph, bias_node)
    assert weight is not None and bias is not None
    axis = 1 if op_kind(layer) is OpKind.CONV_TRANSPOSE else 0
    store(graph, str(weight_node.target), weight * along(factor, axis, weight))
    store(graph, str(bias_node.target), bias * factor + shift)


def _parameter_node(argument: fx.node.Argument) -> fx.Node:
    while isinstance(argument, fx.Node) and argument.target is SITE:
        argument = argument.args[0]
    assert isinstance(argument, fx.Node)
    return argument


def channel_axis(layer: fx.Node, value: Tensor) -> int:
    """Return the axis of a layer's output that its output channels lie along."""
    return value.dim() - 1 if op_kind(layer) is OpKind.LINEAR else 1


def along(values: Tensor, axis: int, like: Tensor) -> Tensor:
    """Shape ``[C]`` values to broadcast along an axis of a tensor."""
    shape = [1] * like.dim()
    shape[axis] = -1
    return values.reshape(shape)


def _affordable(graph: fx.GraphModule, samples: int) -> int:
    largest = max(
        (
            _sample_size(node.meta["val"])
            for node in graph.graph.nodes
            if isinstance(node.meta.get("val"), Tensor) and node.meta["val"].dim() > 1
        ),
        default=1,
    )
    return max(min(samples, _LARGEST // max(largest, 1)), 1)


def _sample_size(value: Tensor) -> int:
    """Return the values of a tensor behind its first axis, without pinning a symbolic size."""
    sizes = 1
    for size in tuple[Any, ...](value.shape[1:]):
        sizes *= size.node.hint if isinstance(size, torch.SymInt) else size
    return sizes
