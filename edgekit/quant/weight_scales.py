"""Scales of narrow weights by least squared error.

At 8 bits the largest weight sets the scale of its channel. At 4 bits that wastes codes: a smaller
scale clips the largest weights and rounds all others more finely.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgekit.quant.affine import SMALLEST_SCALE, broadcast, max_scale, weight_scheme

_CLIPS = torch.linspace(0.4, 1.0, 31)


def mse_scale(weight: Tensor, axis: int, bits: int) -> Tensor:
    """Return the per-channel scale ``[C]`` whose nearest codes lie closest to the weight.

    Every scale is an FP16 number, so that all targets can use the same codes.

    Args:
        weight: any weight, channels along ``axis``.
        axis: channel axis.
        bits: width of the codes.
    """
    scheme = weight_scheme(bits, axis)
    widest = max_scale(weight, axis, bits)
    least = torch.full_like(widest, torch.inf)
    best = widest
    rest = [other for other in range(weight.dim()) if other != axis]
    for clip in _CLIPS:
        scale = (widest * clip).clamp_min(SMALLEST_SCALE).half().float()
        step = broadcast(scale, axis, weight.dim())
        codes = (weight / step).round_().clamp_(scheme.quant_min, scheme.quant_max)
        error = (codes * step - weight).square_().sum(rest)
        best = torch.where(error < least, scale, best)
        least = torch.minimum(error, least)
    return best
