"""Operators of learned rounding whose gradients are not those of what they compute.

Written as single operators, because each keeps one tensor for the backward pass where a
composition of torch's own would keep several of the size of an activation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgekit.quant.affine import QParams


class _Quantize(torch.autograd.Function):
    """Rounding to a grid; its gradient passes where nothing is clipped (straight-through)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: QParams) -> Tensor:
        low, high = _codes(grid)
        scaled = x / grid.scale
        ctx.save_for_backward((scaled >= low - 0.5) & (scaled <= high + 0.5))
        return scaled.round_().clamp_(low, high).mul_(grid.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None


class _QuantizeLearned(torch.autograd.Function):
    """The same with a factor on the step that has a gradient (LSQ, Esser et al., ICLR 2020)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor, grid: QParams) -> Tensor:
        low, high = _codes(grid)
        step = grid.scale * factor
        scaled = x / step
        codes = scaled.round().clamp_(low, high)
        inside = (scaled >= low - 0.5) & (scaled <= high + 0.5)
        ctx.save_for_backward(inside, codes - scaled * inside)
        ctx.scale = grid.scale
        return codes.mul_(step)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        inside, change = ctx.saved_tensors
        (gradient,) = gradients
        return gradient * inside, (gradient * change).sum() * ctx.scale, None


class _Compare(torch.autograd.Function):
    """Gives a value the mean of its target, and returns what is left of their distance."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, target: Tensor, axis: int, weight: float
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        others = [other for other in range(value.dim()) if other != axis]
        error = value - target
        error -= error.mean(others, keepdim=True)
        ctx.save_for_backward(error)
        ctx.others, ctx.weight = others, weight
        return target + error, weight * error.square().sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        (error,) = ctx.saved_tensors
        behind, own = gradients
        found = None if own is None else error * (2 * ctx.weight * own)
        if behind is not None:
            behind = behind - behind.mean(ctx.others, keepdim=True)
            found = behind if found is None else found + behind
        return found, None, None, None


def _codes(grid: QParams) -> tuple[int, int]:
    scheme = grid.scheme
    return scheme.quant_min - grid.zero_point, scheme.quant_max - grid.zero_point


def quantize(x: Tensor, grid: QParams, factor: Tensor | None = None) -> Tensor:
    """Round ``x`` to a grid, with a gradient for ``x`` and for the factor on its step.

    Args:
        x: any shape.
        grid: the grid.
        factor: scalar that multiplies the grid's step.
    """
    if factor is None:
        return _Quantize.apply(x, grid)  # type: ignore[no-any-return, no-untyped-call]
    return _QuantizeLearned.apply(x, factor, grid)  # type: ignore[no-any-return, no-untyped-call]


def compare(value: Tensor, target: Tensor, axis: int, weight: float) -> tuple[Tensor, Tensor]:
    """Give ``value`` the mean of ``target`` in each channel.

    Args:
        value: output of a quantized layer.
        target: of the float one, the same shape.
        axis: the channels' axis.
        weight: of the squared distance that is left.

    Returns:
        The value with its new mean, and the weighted squared distance, a scalar.
    """
    return _Compare.apply(value, target, axis, weight)  # type: ignore[no-any-return, no-untyped-call]
