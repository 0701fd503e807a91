"""Depthwise convolution whose gradient on the CPU is a depthwise convolution as well.

The library's own backward pass of a depthwise convolution is several times slower than its forward
pass. The gradient to the input of a convolution with stride 1 is the convolution of the incoming
gradient with the reversed kernel; with a larger stride, of that gradient spread out with zeros.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from edgekit.graph import argument


def is_depthwise(node: fx.Node, weight: Tensor) -> bool:
    """Whether this is a 2-D convolution of each channel by itself, with numeric padding."""
    groups = argument(node, 6, "groups", 1)
    padding = argument(node, 4, "padding", 0)
    return (
        weight.dim() == 4
        and weight.shape[1] == 1
        and groups == weight.shape[0]
        and not isinstance(padding, str)
        and weight.shape[0] > 1
    )


def depthwise_conv2d(node: fx.Node, args: tuple[object, ...]) -> Tensor:
    """Compute the node from its evaluated arguments; differentiable in the input alone."""
    x, weight, bias = args[0], args[1], args[2] if len(args) > 2 else None
    assert isinstance(x, Tensor) and isinstance(weight, Tensor)
    stride = _pair(argument(node, 3, "stride", 1))
    padding = _pair(argument(node, 4, "padding", 0))
    dilation = _pair(argument(node, 5, "dilation", 1))
    value: Tensor = _Depthwise.apply(x, weight, bias, stride, padding, dilation)  # type: ignore[no-untyped-call]
    return value


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.geometry = x.shape, stride, padding, dilation
        return F.conv2d(x, weight, bias, stride, padding, dilation, weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = gradients
        (weight,) = ctx.saved_tensors
        shape, stride, padding, dilation = ctx.geometry
        groups = weight.shape[0]
        spread = [_spread(grad.shape[2 + i], stride[i]) for i in (0, 1)]
        if stride != (1, 1):
            wide = grad.new_zeros(*grad.shape[:2], *spread)
            wide[:, :, :: stride[0], :: stride[1]] = grad
            grad = wide
        reach = [dilation[i] * (weight.shape[2 + i] - 1) for i in (0, 1)]
        # a full correlation gives the padded input's gradient up to the last position read
        found = F.conv2d(
            grad, weight.flip(2, 3), None, 1, (reach[0], reach[1]), dilation, groups
        )  # [N, C, spread + reach]
        size = [shape[2] + 2 * padding[0], shape[3] + 2 * padding[1]]
        found = F.pad(found, (0, size[1] - found.shape[3], 0, size[0] - found.shape[2]))
        top, left = padding
        return found[:, :, top : top + shape[2], left : left + shape[3]], *(None,) * 5


def _spread(size: int, stride: int) -> int:
    return (size - 1) * stride + 1


def _pair(value: object) -> tuple[int, int]:
    sizes = (value,) if isinstance(value, int) else value
    assert isinstance(sizes, (list, tuple))
    return int(sizes[0]), int(sizes[-1])
