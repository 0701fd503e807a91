"""Operators of the student: weights behind straight-through rounding, and what it minimises.

The step of a weight is learned as in LSQ (Esser et al., ICLR 2020), here in units of the steps that
it began with, so that one rate suits all layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from edgekit.quant.affine import broadcast, weight_scheme


class _RoundWeight(torch.autograd.Function):
    """``scale * exp(growth) * round(place / exp(growth))``, clipped to the grid."""

    @staticmethod
    def forward(
        ctx: Any, place: Tensor, growth: Tensor, scale: Tensor, axis: int, bits: int
    ) -> Tensor:
        scheme = weight_scheme(bits, axis)
        factor = broadcast(growth.exp(), axis, place.dim())
        scaled = place / factor
        codes = scaled.round().clamp_(scheme.quant_min, scheme.quant_max)
        inside = (scaled >= scheme.quant_min - 0.5) & (scaled <= scheme.quant_max + 0.5)
        unit = broadcast(scale, axis, place.dim())
        ctx.save_for_backward(inside, (codes - scaled * inside) * factor * unit, unit)
        ctx.axis = axis
        return codes * factor * unit

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inside, change, unit = ctx.saved_tensors
        (gradient,) = gradients
        others = [other for other in range(gradient.dim()) if other != ctx.axis]
        return gradient * inside * unit, (gradient * change).sum(others), None, None, None


def round_weight(place: Tensor, growth: Tensor, scale: Tensor, axis: int, bits: int) -> Tensor:
    """Return the rounded weight, with a gradient for its values and for its steps.

    Args:
        place: the weight in units of ``scale``.
        growth: logarithm of what the steps are multiplied by, ``[C]``.
        scale: the steps to begin with, ``[C]``.
        axis: of the channels.
        bits: width of the codes.
    """
    return _RoundWeight.apply(place, growth, scale, axis, bits)  # type: ignore[no-any-return, no-untyped-call]


def distillation_loss(found: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Return ``T^2 KL(softmax(wanted / T) || softmax(found / T))``, the mean over samples.

    Args:
        found: logits of the student, ``[N, K]``.
        wanted: those of its teacher.
        temperature: T; with a large one, all logits count and not the largest alone.
    """
    student = F.log_softmax(found / temperature, 1)
    teacher = F.log_softmax(wanted / temperature, 1)
    divergence = F.kl_div(student, teacher, log_target=True, reduction="batchmean")
    return divergence * temperature**2


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean squared error in units of the variance of what is wanted, a scalar."""
    return (found - wanted).square().mean() / wanted.var(correction=0).clamp_min(1e-12)
