"""Random crops and mirror images of generated images, differentiably."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_SMALLEST_CROP = 0.8  # share of the area (GDFQ's and FDDA's configurations)
_ASPECT = math.log(4 / 3)


def crop_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crop each image at random, resize it back, and mirror half of them.

    Args:
        images: ``[N, C, H, W]``.
        generator: CPU source of the draws.
    """
    count = len(images)
    area = _uniform(count, _SMALLEST_CROP, 1.0, generator)
    aspect = _uniform(count, -_ASPECT, _ASPECT, generator).exp()
    width, height = (area * aspect).sqrt().clamp_max(1), (area / aspect).sqrt().clamp_max(1)
    # in affine_grid's coordinates an axis runs from -1 to 1, and a crop may move by what it leaves
    right = (1 - width) * _uniform(count, -1.0, 1.0, generator)
    down = (1 - height) * _uniform(count, -1.0, 1.0, generator)
    mirror = 1.0 - 2.0 * torch.randint(2, (count,), generator=generator)
    zero = torch.zeros(count)
    rows = [width * mirror, zero, right, zero, height, down]
    grid = F.affine_grid(
        torch.stack(rows, 1).reshape(count, 2, 3).to(images),
        list(images.shape),
        align_corners=False,
    )
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)
