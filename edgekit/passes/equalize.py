"""Equalization of channel ranges between a layer and its readers, where it pays.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV
2019), section 4.1: ReLU lets a positive factor pass, so channel c of a layer may be multiplied by
t_c and the weights that read it divided by t_c. (A clamp with an upper bound does not, and pairs
around one are left alone: on MobileNetV1 lifting below the bound gained nothing.) They choose t_c
to equalize weight ranges for per-tensor weights. Ours are per channel, so what is to gain lies in
the activations: a per-tensor grid spends its codes on the widest channel, and t_c >= 1 lifts the
others towards it.

Lifting a channel shrinks the weights that read it, which then round more coarsely relative to
their size. With W [o, c] the reader's weights, x_c its input, d_x and d_o the steps of input and
weight row o, the variance of the output error is
    sum_oc (W_oc / t_c)^2 d_x^2 / 12  +  sum_o d_o(t)^2 / 12 sum_c t_c^2 E[x_c^2],
and t_c = (R / r_c)^a with channel range r_c and R = max r_c. The exponent with the least error
wins; a = 0 leaves the pair alone. Depthwise readers scale each channel's weights by themselves,
so their second term does not change.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from edgekit.capture import CapturedModel
from edgekit.graph import WEIGHTED, OpKind, argument, clamp_bounds, constant, op_kind, store
from edgekit.quant.statistics import Statistics, TensorStatistics
from edgekit.sites import layer_name
from edgekit.types import LayerBits

EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
HEADROOM = 1.5
"""Real data may exceed the observed range of a channel by this factor before a lifted channel
meets the end of the tensor's grid."""
MAX_LIFT = 32.0
LEAST_GAIN = 0.02  # predicted error must fall by this fraction


@dataclass(frozen=True)
class _Pair:
    """A layer, the clamp behind it if any, and the layers that read the result."""

    layer: fx.Node
    clamp: fx.Node | None
    readers: tuple[fx.Node, ...]

    @property
    def tensor(self) -> fx.Node:
        return self.clamp or self.layer


def equalize(
    model: CapturedModel, statistics: Statistics, bits: Mapping[str, LayerBits]
) -> tuple[CapturedModel, Statistics, Mapping[str, float]]:
    """Lift channels wherever that lowers the predicted error.

    Args:
        model: the network without BatchNorms.
        statistics: of its activations.
        bits: widths of its layers by name.

    Returns:
        The model with rescaled weights, statistics to match, and the exponent chosen for each
        tensor that was changed.
    """
    graph_module = copy.deepcopy(model.graph)
    tensors = dict(statistics.tensors)
    chosen: dict[str, float] = {}
    for node in graph_module.graph.nodes:
        pair = _pair(graph_module, node)
        if pair is None or pair.tensor.name not in tensors:
            continue
        exponent, lift = _best_lift(graph_module, pair, tensors[pair.tensor.name], bits)
        if exponent == 0.0:
            continue
        _apply(graph_module, pair, lift)
        for changed in {node.name for node in _same_channels(pair)} & set(tensors):
            tensors[changed] = _lifted(tensors[changed], lift)
        chosen[pair.tensor.name] = exponent
    return replace(model, graph=graph_module), replace(statistics, tensors=tensors), chosen


def _pair(graph_module: fx.GraphModule, layer: fx.Node) -> _Pair | None:
    if op_kind(layer) not in (OpKind.CONV, OpKind.LINEAR) or not _owns_weight(graph_module, layer):
        return None
    clamp = None
    tensor = layer
    readers = list(layer.users)
    if len(readers) == 1 and op_kind(readers[0]) is OpKind.CLAMP_ZERO:
        if clamp_bounds(readers[0])[1] is not None:
            return None
        clamp = tensor = readers[0]
        readers = list(clamp.users)
    axis = -1 if op_kind(layer) is OpKind.LINEAR else 1
    if not readers or any(not _can_read(graph_module, reader, tensor, axis) for reader in readers):
        return None
    return _Pair(layer, clamp, tuple(readers))


def _can_read(graph_module: fx.GraphModule, reader: fx.Node, tensor: fx.Node, axis: int) -> bool:
    """Whether the weights of ``reader`` can undo a factor on the channels along ``axis``."""
    if op_kind(reader) is OpKind.ZERO_PAD:
        same = reader.meta["val"].shape[axis] == tensor.meta["val"].shape[axis]
        return same and all(_can_read(graph_module, user, reader, axis) for user in reader.users)
    if op_kind(reader) not in WEIGHTED or op_kind(reader) is OpKind.CONV_TRANSPOSE:
        return False
    if (op_kind(reader) is OpKind.LINEAR) != (axis == -1):
        return False  # a linear layer on [N, C, L] mixes positions, not channels
    if reader.args[0] is not tensor or not _owns_weight(graph_module, reader):
        return False
    return _groups(reader) == 1 or _is_depthwise(graph_module, reader)


def _owns_weight(graph_module: fx.GraphModule, layer: fx.Node) -> bool:
    """Whether weight and bias are parameters that no other operator reads."""
    weight, bias = layer.args[1], argument(layer, 2, "bias")
    for parameter in (weight,) if bias is None else (weight, bias):
        if constant(graph_module, parameter) is None:
            return False
        assert isinstance(parameter, fx.Node)
        same = graph_module.graph.find_nodes(op="get_attr", target=parameter.target)
        if len(same) != 1 or len(parameter.users) != 1:
            return False
    return True


def _same_channels(pair: _Pair) -> list[fx.Node]:
    """The tensors whose channels are lifted: the layer's result, clamped, and padded."""
    found = [pair.layer, pair.tensor]
    pending = list(pair.readers)
    while pending:
        reader = pending.pop()
        if op_kind(reader) is OpKind.ZERO_PAD:
            found.append(reader)
            pending.extend(reader.users)
    return found


def _weighted_readers(pair: _Pair) -> list[fx.Node]:
    found: list[fx.Node] = []
    pending = list(pair.readers)
    while pending:
        reader = pending.pop()
        if op_kind(reader) is OpKind.ZERO_PAD:
            pending.extend(reader.users)
        else:
            found.append(reader)
    return found


def _best_lift(
    graph_module: fx.GraphModule,
    pair: _Pair,
    stats: TensorStatistics,
    bits: Mapping[str, LayerBits],
) -> tuple[float, Tensor]:
    limits = torch.maximum(stats.channel_maximum, -stats.channel_minimum).clamp_min(1e-12)
    widest = limits.max()
    room = (widest / (limits * HEADROOM)).clamp(1.0, MAX_LIFT)
    moment = _second_moment(stats)
    best = (0.0, torch.ones_like(limits))
    least = reference = _error(graph_module, pair, best[1], widest, moment, bits)
    for exponent in EXPONENTS[1:]:
        lift = room**exponent
        error = _error(graph_module, pair, lift, widest, moment, bits)
        if error < least and error < reference * (1 - LEAST_GAIN):
            best, least = (exponent, lift), error
    return best


def _second_moment(stats: TensorStatistics) -> Tensor:
    """``E[x^2]`` of each channel from the sampled values."""
    count = torch.bincount(stats.channels, minlength=len(stats.channel_mean)).clamp_min(1)
    total = torch.bincount(
        stats.channels, stats.values.double() ** 2, minlength=len(stats.channel_mean)
    )
    return (total / count).float()


def _error(
    graph_module: fx.GraphModule,
    pair: _Pair,
    lift: Tensor,
    widest: Tensor,
    moment: Tensor,
    bits: Mapping[str, LayerBits],
) -> float:
    total = 0.0
    for reader in _weighted_readers(pair):
        weight = constant(graph_module, reader.args[1])
        assert weight is not None
        width = bits[layer_name(reader)]
        step = widest / (2.0**width.activation - 1)
        top = 2.0 ** (width.weight - 1) - 1
        if _is_depthwise(graph_module, reader):
            energy = weight.flatten(1).square().sum(1)
            total += float((energy / lift.square()).sum() * step**2)
            rows = weight.flatten(1).abs().amax(1) / top
            total += float((rows.square() * moment).sum())
            continue
        matrix = weight.transpose(0, 1).flatten(2) if weight.dim() > 2 else weight.T[..., None]
        scaled = matrix / lift.reshape(-1, 1, 1)  # [C, O, kernel]
        total += float(scaled.square().sum() * step**2)
        rows = scaled.abs().amax((0, 2)) / top
        total += float(rows.square().sum() * (moment * lift.square()).sum() * matrix.shape[2])
    return total


def _apply(graph_module: fx.GraphModule, pair: _Pair, lift: Tensor) -> None:
    for position in (1, 2):
        node = argument(pair.layer, position, "bias" if position == 2 else "weight")
        value = constant(graph_module, node)
        if value is not None:
            assert isinstance(node, fx.Node)
            store(
                graph_module, str(node.target), value * lift.reshape(-1, *(1,) * (value.dim() - 1))
            )
    for reader in _weighted_readers(pair):
        node = reader.args[1]
        weight = constant(graph_module, node)
        assert weight is not None and isinstance(node, fx.Node)
        axis = 0 if _is_depthwise(graph_module, reader) else 1
        shape = [1] * weight.dim()
        shape[axis] = -1
        store(graph_module, str(node.target), weight / lift.reshape(shape))


def _lifted(stats: TensorStatistics, lift: Tensor) -> TensorStatistics:
    low, high = stats.channel_minimum * lift, stats.channel_maximum * lift
    prior = stats.prior
    if prior is not None:  # the widest channel keeps its range; others only move towards it
        prior = (min(prior[0], float(low.min())), max(prior[1], float(high.max())))
    return replace(
        stats,
        minimum=float(low.min()),
        maximum=float(high.max()),
        channel_mean=stats.channel_mean * lift,
        channel_minimum=low,
        channel_maximum=high,
        values=stats.values * lift[stats.channels],
        prior=prior,
        stored=None if stats.stored is None else (stats.stored[0] * lift, stats.stored[1] * lift),
    )


def _groups(layer: fx.Node) -> int:
    if op_kind(layer) is OpKind.LINEAR:
        return 1
    groups = argument(layer, 6, "groups", 1)
    assert isinstance(groups, int)
    return groups


def _is_depthwise(graph_module: fx.GraphModule, layer: fx.Node) -> bool:
    weight = constant(graph_module, layer.args[1])
    groups = _groups(layer)
    return weight is not None and groups > 1 and weight.shape[1] == 1 and weight.shape[0] == groups
