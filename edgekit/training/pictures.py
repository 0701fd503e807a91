"""Blurred and sharp pictures to train restoration on, and crops of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from edgekit.errors import require

_LEAST_SCALE = 256 / 720

Pair = tuple[np.ndarray, np.ndarray]
"""A blurred and a sharp picture of the same scene, ``[H, W, 3]`` uint8 RGB each."""


class BlurredPictures(Protocol):
    """A source of pictures. Scenes that are shown blurred are never shown sharp, but in pairs."""

    @property
    def description(self) -> str:
        """What it is, in words."""
        ...

    @property
    def identity(self) -> str:
        """Text that differs where the pictures do."""
        ...

    @property
    def resized(self) -> bool:
        """Whether crops are taken at random scales, as real pictures need it."""
        ...

    def blurred(self, rng: np.random.Generator) -> np.ndarray:
        """Return a blurred picture ``[H, W, 3]`` uint8."""
        ...

    def sharp(self, rng: np.random.Generator) -> np.ndarray:
        """Return a sharp picture ``[H, W, 3]`` uint8."""
        ...

    def pair(self, rng: np.random.Generator) -> Pair:
        """Return both pictures of one scene, for the control that learns from pairs."""
        ...

    def validation(self) -> Sequence[Pair]:
        """Return pairs of scenes that nothing else shows."""
        ...


@dataclass(frozen=True, slots=True)
class _Cut:
    """Where a crop lies: shares of what is free, and flips."""

    scale: float
    down: float
    right: float
    mirrored: bool
    upended: bool

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> _Cut:
        scale, down, right, mirrored, upended = rng.uniform(0.0, 1.0, 5)
        return cls(scale, down, right, mirrored < 0.5, upended < 0.5)

    def of(self, picture: np.ndarray, side: int, resized: bool) -> np.ndarray:
        """Return the crop ``[side, side, 3]``."""
        height, width = picture.shape[:2]
        least = max(side / min(height, width), _LEAST_SCALE)
        scale = least + self.scale * (1.0 - least) if resized else 1.0
        taken = min(round(side / scale), height, width)
        top = int(self.down * (height - taken + 1))
        left = int(self.right * (width - taken + 1))
        crop = picture[top : top + taken, left : left + taken]
        if taken != side:
            cv2 = require("cv2", extra="images")
            crop = cv2.resize(crop, (side, side), interpolation=cv2.INTER_LINEAR)
        crop = crop[:, ::-1] if self.mirrored else crop
        return crop[::-1] if self.upended else crop


def crops(
    draw: Callable[[np.random.Generator], Sequence[np.ndarray]],
    rng: np.random.Generator,
    count: int,
    side: int,
    resized: bool,
) -> list[Tensor]:
    """Cut random crops at random places and orientations; pictures of one draw are cut alike.

    Args:
        draw: returns pictures ``[H, W, 3]`` uint8, no side shorter than the crop's.
        rng: source of everything random.
        count: crops.
        side: height and width of a crop, pixels.
        resized: shrink by a random factor too, down to 256/720 as for GoPro.

    Returns:
        For each place in the draw, ``[count, 3, side, side]`` float32 in [0, 1].
    """
    made = []
    for _ in range(count):
        cut = _Cut.drawn(rng)
        made.append([cut.of(picture, side, resized) for picture in draw(rng)])
    return [to_tensor(column) for column in zip(*made, strict=True)]


def to_tensor(pictures: Sequence[np.ndarray]) -> Tensor:
    """Return pictures ``[H, W, 3]`` uint8 of one size as ``[N, 3, H, W]`` float32 in [0, 1]."""
    stacked = torch.from_numpy(np.ascontiguousarray(np.stack(pictures)))
    return stacked.permute(0, 3, 1, 2).float() / 255.0
