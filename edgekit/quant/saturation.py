"""Saturation lint: keep 16-bit pair sums of x86 without VNNI from overflowing.

``vpmaddubsw`` multiplies unsigned activations by signed weights and adds neighbouring products
into 16 bits with saturation. With activation codes up to 255 a pair of weights is safe exactly
when its positive parts and its negative parts each sum to at most 128: 255 * 128 < 2**15.
Runtimes answer by halving the range of every weight; we bound each pair and change only the
channels in which one is at risk (field.md, section 4, item 7).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import torch
from torch import Tensor

from edgekit.quant.affine import (
    WeightCodes,
    broadcast,
    max_scale,
    quantize_weight,
    weight_scheme,
)

PAIR_LIMIT = 32767 // 255
"""Largest sum of two weight codes of one sign that no activation can overflow: 128."""

_GROWTH = tuple(1.0 + step / 32 for step in range(33))  # up to half range, where no pair can fail


class Pairing(str, enum.Enum):
    """Which weights a CPU kernel multiplies into one 16-bit sum."""

    NONE = "none"
    FLAT = "flat"  # neighbours in [kernel position, input channel] order, across positions
    CHANNELS = "channels"  # neighbouring input channels of one kernel position


@dataclass(frozen=True)
class SaturationReport:
    """What the lint found in one layer: channels at risk of all, and the worst pair sum."""

    channels: int
    at_risk: int
    worst_pair: int


def quantize_without_overflow(
    weight: Tensor, axis: int, bits: int, pairing: Pairing
) -> tuple[WeightCodes, SaturationReport]:
    """Quantize a weight so that no pair sum can overflow.

    Channels without a pair at risk keep their full-range codes. For the others the scale grows
    and pairs above the limit are reduced by the least squared change; the growth with the least
    total squared error wins.

    Args:
        weight: convolution ``[C_out, C_in / groups, *kernel]`` or linear ``[C_out, C_in]``.
        axis: output-channel axis; only 0 forms pairs.
        bits: weight bits.
        pairing: how the kernel pairs weights; ``NONE`` leaves the codes as they are.
    """
    base = max_scale(weight, axis, bits)
    full = quantize_weight(weight, base, axis, bits)
    if pairing is Pairing.NONE or axis != 0 or weight.shape[1] == 1:  # depthwise kernels widen first
        return full, SaturationReport(weight.shape[axis], 0, 0)
    sums = _pair_sums(_pairs(full.codes.float(), pairing))
    worst = sums.flatten(1).amax(1)
    risky = worst > PAIR_LIMIT
    report = SaturationReport(weight.shape[0], int(risky.sum()), int(worst.max()))
    if not report.at_risk:
        return full, report
    codes, scale = full.codes.clone(), base.clone()
    codes[risky], scale[risky] = _repair(weight[risky], base[risky], bits, pairing)
    return WeightCodes(codes, scale, axis), report


def _repair(weight: Tensor, base: Tensor, bits: int, pairing: Pairing) -> tuple[Tensor, Tensor]:
    best_error = torch.full((weight.shape[0],), float("inf"))
    best_codes = torch.zeros_like(weight, dtype=torch.int8)
    best_scale = base.clone()
    scheme = weight_scheme(bits, 0)
    for growth in _GROWTH:
        scale = base * growth
        step = broadcast(scale, 0, weight.dim())
        codes = torch.round(weight / step).clamp(scheme.quant_min, scheme.quant_max)
        codes = _limit_pairs(codes, pairing)
        error = ((codes * step - weight) ** 2).flatten(1).sum(1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
        best_codes[better] = codes[better].to(torch.int8)
    return best_codes, best_scale


def _limit_pairs(codes: Tensor, pairing: Pairing) -> Tensor:
    """Reduce both members of each offending pair by half the excess."""
    pairs = _pairs(codes, pairing)
    excess = (_pair_sums(pairs) - PAIR_LIMIT).clamp_min(0)
    larger = torch.ceil(excess / 2)
    # members of an offending pair have one sign and each is at least excess - 1 (127 at most)
    first = pairs[..., 0] - torch.sign(pairs[..., 0]) * larger
    second = pairs[..., 1] - torch.sign(pairs[..., 1]) * (excess - larger)
    return _unpairs(torch.stack((first, second), -1), codes.shape, pairing)


def _pair_sums(pairs: Tensor) -> Tensor:
    """Return the larger of the positive and the negative part sum of each pair."""
    positive = pairs.clamp_min(0).sum(-1)
    negative = -pairs.clamp_max(0).sum(-1)
    return torch.maximum(positive, negative)


def _pairs(codes: Tensor, pairing: Pairing) -> Tensor:
    """Rearrange ``[O, I, *kernel]`` into ``[O, ..., 2]`` as the kernel pairs them."""
    rows = codes.flatten(2).transpose(1, 2) if codes.dim() > 2 else codes[:, None]
    if pairing is Pairing.FLAT:
        rows = rows.flatten(1)[:, None]
    if rows.shape[-1] % 2:
        rows = torch.nn.functional.pad(rows, (0, 1))
    return rows.unflatten(-1, (-1, 2))


def _unpairs(pairs: Tensor, shape: torch.Size, pairing: Pairing) -> Tensor:
    """Undo :func:`_pairs`."""
    rows = pairs.flatten(-2)
    positions = shape[2:].numel()
    if pairing is Pairing.FLAT:
        rows = rows[:, 0, : shape[1] * positions].unflatten(1, (positions, shape[1]))
    else:
        rows = rows[..., : shape[1]]
    return rows.transpose(1, 2).reshape(shape)
