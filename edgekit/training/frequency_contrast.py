"""FCL-GAN's contrast of frequencies: a sharp picture fills the high ones, a blurred one does not.

Descriptor of a picture ``I`` ``[3, H, W]`` in [0, 1]::

    grey = 0.299 R + 0.587 G + 0.114 B
    F    = FFT2(grey) * 256 / sqrt(H W)          two-sided, not shifted
    M    = sigmoid(k ln |F|)                     released: 1 where |F| > 1, else 0
    phi  = mean of (1 - M) over each quarter of rows H/4..3H/4 and columns W/4..3W/4    [4]

The zero frequency sits in the corners, so the middle holds the high ones, and ``phi`` is the share
of them that is nearly empty. The factor is one for the paper's crops of 256; for others it keeps
the threshold where it is in units of noise. Similarity is ``1 - mean (phi_a - phi_b)^2``, and the
loss InfoNCE with temperature 0.07 over one positive and the negatives.

As released, the threshold is hard and the similarities are taken out of the graph: the term has a
value and no gradient. With a finite ``k`` it has one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

STEEPNESS = 6.0
"""``k`` of the differentiable form: between |F| = 1/1.5 and 1.5, M goes from 0.08 to 0.92."""
TEMPERATURE = 0.07
_CROP = 256  # of the paper
_GREY = (0.299, 0.587, 0.114)
_TINY = 1e-16  # of the power: |F| = 1e-8


def frequency_descriptor(images: Tensor, steepness: float | None = STEEPNESS) -> Tensor:
    """Return how empty each quarter of the high frequencies is, ``[N, 4]`` from 0 to 1.

    Args:
        images: ``[N, 3, H, W]`` in [0, 1]; height and width multiples of eight.
        steepness: ``k``; the hard threshold of the released code if ``None``.
    """
    height, width = images.shape[-2:]
    weights = images.new_tensor(_GREY).reshape(1, 3, 1, 1)
    spectrum = torch.fft.fft2((images * weights).sum(1)) * (_CROP / math.sqrt(height * width))
    rows, columns = slice(height // 4, 3 * height // 4), slice(width // 4, 3 * width // 4)
    power = torch.view_as_real(spectrum[:, rows, columns]).square().sum(-1)
    if steepness is None:
        full = (power > 1.0).to(images.dtype)
    else:
        full = torch.sigmoid(steepness * 0.5 * torch.log(power + _TINY))
    empty = F.avg_pool2d((1.0 - full)[:, None], (height // 4, width // 4))
    return empty.flatten(1)


def similarity(first: Tensor, second: Tensor) -> Tensor:
    """Return ``1 - mean squared difference`` of descriptors ``[..., 4]``."""
    return 1.0 - (first - second).square().mean(-1)


def info_nce(anchor: Tensor, positive: Tensor, negatives: Tensor) -> Tensor:
    """Return the mean loss of telling each anchor's positive from its negatives.

    ``-log(exp(s+ / t) / (exp(s+ / t) + sum exp(s- / t)))``, ``t`` the temperature.

    Args:
        anchor: descriptors ``[N, 4]``.
        positive: ``[N, 4]``.
        negatives: ``[N, K, 4]``.
    """
    scores = torch.cat(
        (similarity(anchor, positive)[:, None], similarity(anchor[:, None], negatives)), 1
    )
    first = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
    return F.cross_entropy(scores / TEMPERATURE, first)
