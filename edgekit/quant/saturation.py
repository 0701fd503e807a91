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
    max_scale,
    quantize_weight,
    weight_scheme,
)

PAIR_LIMIT = 32767 // 255
"""Largest sum of two weight codes of one sign that no activation can overflow: 128."""

# up to twice the scale, where no pair can fail, and the half-range grid itself (7 bits): the result
# is never worse than halving the range
_GROWTH = (*(1.0 + step / 32 for step in range(33)), 127 / 63)


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
    # depthwise kernels widen to 16 bits before they multiply
    if pairing is Pairing.NONE or axis != 0 or weight.shape[1] == 1:
        return full, SaturationReport(weight.shape[axis], 0, 0)
    sums = _pair_sums(_pairs(full.codes.float(), pairing))
    worst = sums.flatten(1).amax(1)
    risky = worst > PAIR_LIMIT
    report = SaturationReport(weight.shape[0], int(risky.sum()), int(worst.max()))
    if not report.at_risk:
        return full, report
    codes, scale = full.codes.clone(), base.clone()
    codes[risky], scale[risky] = _repair(weight[risky], base[risky], bits, pairing)
    return WeightCodes(codes, scale, axis, bits), report


def _repair(weight: Tensor, base: Tensor, bits: int, pairing: Pairing) -> tuple[Tensor, Tensor]:
    """Return codes and scale of the channels at risk, ``weight`` ``[R, C_in, *kernel]``."""
    paired = _pairs(weight, pairing)
    halves = paired[..., 0].flatten(1).contiguous(), paired[..., 1].flatten(1).contiguous()
    best_error = torch.full((weight.shape[0],), float("inf"))
    best_scale = base.clone()
    best = torch.zeros(2, *halves[0].shape, dtype=torch.int8)
    top = weight_scheme(bits, 0).quant_max
    for growth in _GROWTH:
        step = (base * growth)[:, None]
        codes = _limit(*((half / step).round_().clamp_(-top, top) for half in halves))
        error = sum((c * step - h).square_().sum(1) for c, h in zip(codes, halves, strict=True))
        assert isinstance(error, Tensor)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, base * growth, best_scale)
        best[:, better] = torch.stack(codes)[:, better].to(torch.int8)
    joined = torch.stack((best[0], best[1]), -1).reshape(paired.shape)
    return _unpairs(joined, weight.shape, pairing), best_scale


def _limit(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Reduce both members of each offending pair by half the excess.

    Members of an offending pair have one sign, and as codes end at 127 each is larger than the
    excess, so none crosses zero.
    """
    total = first + second
    excess = (total.abs() - PAIR_LIMIT).clamp_min_(0)
    sign = total.sign_()
    larger = torch.ceil(excess / 2)
    return first - sign * larger, second - sign * (excess - larger)


def _pair_sums(pairs: Tensor) -> Tensor:
    """Return the larger of the positive and the negative part sum of each pair."""
    first, second = pairs[..., 0], pairs[..., 1]
    return torch.maximum((first + second).abs(), torch.maximum(first.abs(), second.abs()))


def _pairs(codes: Tensor, pairing: Pairing) -> Tensor:
    """Rearrange ``[O, I, *kernel]`` into ``[O, ..., 2]`` as the kernel pairs them."""
    rows = codes.flatten(2).transpose(1, 2) if codes.dim() > 2 else codes[:, None]
    if pairing is Pairing.FLAT:
        rows = rows.flatten(1)[:, None]
    if rows.shape[-1] % 2:
        rows = torch.nn.functional.pad(rows, (0, 1))
    return rows.reshape(*rows.shape[:-1], -1, 2)


def _unpairs(pairs: Tensor, shape: torch.Size, pairing: Pairing) -> Tensor:
    """Undo :func:`_pairs`."""
    rows = pairs.flatten(-2)
    positions = shape[2:].numel()
    if pairing is Pairing.FLAT:
        rows = rows[:, 0, : shape[1] * positions].unflatten(1, (positions, shape[1]))
    else:
        rows = rows[..., : shape[1]]
    return rows.transpose(1, 2).reshape(shape)
