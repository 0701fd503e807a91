"""SQuant: move single codes until rounding errors cancel in every kernel and output channel.

Guo et al., "SQuant: On-the-Fly Data-Free Quantization via Diagonal Hessian Approximation" (ICLR
2022). Where the inputs of a layer share a sign, as behind a ReLU, the errors of single weights harm
its output less than their sums over the positions of a kernel and over the kernels of an output
channel. Nearest codes let these sums grow. Here the weights that were least decided take their
other neighbour until no kernel's sum exceeds half a step, then no channel's, for which some kernels
go up to one step; each stage adds the least squared error that this takes. It needs no inputs.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor, fx

from edgekit.graph import WEIGHTED, OpKind, argument, constant, op_kind
from edgekit.quant.affine import WeightCodes, broadcast, weight_scheme
from edgekit.quantized import QuantizedModel
from edgekit.sites import Role, layer_name

_AT_ONCE = 1 << 22  # weights: sorting takes five times their memory


def squant(weight: Tensor, codes: Tensor, bits: int) -> Tensor:
    """Return codes whose errors cancel in each kernel and in each channel.

    What a clipped weight lost counts as half a step: less leaves too much of it, and all of it
    takes more moves than it is worth (ResNet-8, logit KL: 64e-3 without it, 60 so, 71 with all).

    Args:
        weight: in steps of its grid, ``[channels, kernels, positions]``; NaN where there is none.
        codes: the nearest ones, same shape, float32.
        bits: width of the grid.

    Returns:
        Codes that differ from the nearest ones by one at most, ``[channels, kernels, positions]``.
    """
    scheme = weight_scheme(bits, 0)
    error = (codes - weight).nan_to_num(0.0).clamp_(-0.5, 0.5)
    up = (error < 0) & (codes < scheme.quant_max)
    down = (error > 0) & (codes > scheme.quant_min)
    sums = error.sum(-1)
    moves = sums.round().clamp(-up.sum(-1), down.sum(-1))
    rest = sums - moves
    excess = rest.sum(-1, keepdim=True).round()
    further = moves + excess.sign()
    possible = (further >= -up.sum(-1)) & (further <= down.sum(-1)) & (rest * excess > 0)
    taken = _largest(rest * excess.sign(), possible, excess.abs())
    moves = torch.where(taken, further, moves)[..., None]
    sign = moves.sign()
    return codes - sign * _largest(error * sign, torch.where(sign > 0, down, up), moves.abs())


def _largest(values: Tensor, allowed: Tensor, count: Tensor) -> Tensor:
    """Return a mask of the ``count`` largest allowed values along the last axis.

    Args:
        values: ``[..., N]``.
        allowed: which of them may be taken, ``[..., N]``.
        count: how many, ``[..., 1]``.
    """
    ranked = torch.where(allowed, values, -torch.inf)
    order = ranked.argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(order.shape[-1]).expand_as(order)
    return allowed & (torch.empty_like(order).scatter_(-1, order, places) < count)


def cancel_errors(layer: fx.Node, weight: Tensor, codes: WeightCodes) -> WeightCodes:
    """Return a layer's codes by :func:`squant`.

    Args:
        layer: convolution, transposed convolution or linear node.
        weight: its weight.
        codes: its nearest codes, with one scale for each channel.
    """
    index = _summed_together(layer, weight.shape)
    nothing = torch.tensor([torch.nan])
    step = broadcast(codes.scale, codes.axis, weight.dim())
    steps = torch.cat(((weight / step).flatten(), nothing))
    found = torch.cat((codes.codes.flatten().float(), nothing))
    for part in index.split(max(_AT_ONCE // index[0].numel(), 1)):
        found[part] = squant(steps[part], found[part], codes.bits)
    return replace(codes, codes=found[:-1].reshape(weight.shape).to(torch.int8))


def _summed_together(layer: fx.Node, shape: torch.Size) -> Tensor:
    """Return positions in the flat weight by ``[channels, kernels, positions]``.

    Of a transposed convolution's kernel one output sees every stride-th position only: these make
    up a kernel, and the outputs between two strides are channels of their own. Where kernels
    differ in size, the position behind the last weight fills them up.
    """
    index = torch.arange(shape.numel()).reshape(shape)
    if op_kind(layer) is not OpKind.CONV_TRANSPOSE:
        return index.reshape(shape[0], shape[1], -1)
    groups = argument(layer, 6, "groups", 1)
    assert isinstance(groups, int)
    phases = _phases(layer, shape[2:])
    filled = torch.full((*shape[:2], 1), shape.numel())
    split = torch.cat((index.flatten(2), filled), -1)[..., phases]  # [I, O / groups, phases, P]
    kernels: Tensor = split.unflatten(0, (groups, -1)).permute(0, 2, 3, 1, 4)
    return kernels.flatten(0, 2)


def _phases(layer: fx.Node, kernel: torch.Size) -> Tensor:
    """Return a transposed kernel's flat positions by the outputs that see them, filled with -1."""
    strides = _each_axis(argument(layer, 3, "stride", 1), len(kernel))
    dilations = _each_axis(argument(layer, 7, "dilation", 1), len(kernel))
    label = torch.zeros(kernel, dtype=torch.int64)
    for axis, (size, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True)):
        phase = torch.arange(size) * dilation % stride
        label = label * stride + broadcast(phase, axis, len(kernel))
    flat = label.flatten()
    members = [(flat == phase).nonzero().flatten() for phase in flat.unique()]
    return torch.nn.utils.rnn.pad_sequence(members, batch_first=True, padding_value=-1)


def _each_axis(value: object, axes: int) -> list[int]:
    """Return an operator's argument for every axis: a single one stands for all."""
    if isinstance(value, int):
        return [value] * axes
    assert isinstance(value, (list, tuple))
    stated = [int(v) for v in value]
    return stated * axes if len(stated) == 1 else stated


def round_by_squant(
    model: QuantizedModel, skip: Collection[str] = ()
) -> tuple[QuantizedModel, frozenset[str]]:
    """Return the model with codes of its narrow layers by SQuant, and the names of these layers.

    Tables keep their codes, as nothing is summed over the values of a row, and so do codes in
    blocks: the linear layers that have them read what has no common sign, and on networks with
    attention the error went up by 0.2 to 0.7 dB.

    Args:
        model: the model with nearest codes.
        skip: names of layers that are left alone.
    """
    found: dict[str, WeightCodes] = {}
    for site in model.sited.sites:
        layer = model.sited.node(site.consumer)
        if site.role is not Role.WEIGHT or op_kind(layer) not in WEIGHTED:
            continue
        name = layer_name(layer)
        codes = model.codes.get(name)
        if codes is None or codes.bits == 8 or codes.block is not None or name in {*found, *skip}:
            continue
        weight = constant(model.sited.model.graph, model.sited.node(site.tensor))
        assert weight is not None
        found[name] = cancel_errors(layer, weight, codes)
    return replace(model, codes={**model.codes, **found}), frozenset(found)
