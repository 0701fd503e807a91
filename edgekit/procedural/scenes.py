"""Pictures to train restoration on: dead leaves, gradients behind them, writing on top."""

from __future__ import annotations

import numpy as np

from .dead_leaves import dead_leaves
from .glyphs import write_lines
from .gradients import gradient

_WRITTEN = 0.4  # share of the pictures with writing
_SMOOTH = 0.5  # share in which part of the leaves gives way to a gradient


def draw_scene(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return a sharp picture ``[size, size, 3]``, uint8 RGB.

    Args:
        rng: source of everything random.
        size: height and width, pixels.
    """
    image = dead_leaves(rng, size)
    smooth, written = rng.uniform(0.0, 1.0, 2)
    if smooth < _SMOOTH:  # behind a ragged horizon, as a sky is
        ground = gradient(rng, size)
        steps = np.cumsum(rng.normal(0.0, 1.0, size))
        horizon = size * rng.uniform(0.15, 0.6) + steps - steps.mean()
        rows = np.arange(size, dtype=np.float32)[:, None]
        sky = np.clip(horizon[None] - rows + 0.5, 0.0, 1.0)[..., None].astype(np.float32)
        image += sky * (ground - image)
    if written < _WRITTEN:
        write_lines(image, rng)
    # some exposures leave part of the range empty, in others shadows and lights are cut off
    low, high = rng.uniform(-0.25, 0.15), rng.uniform(0.8, 1.25)
    exposed = np.clip(low + (high - low) * image, 0.0, 1.0)
    pixels: np.ndarray = np.rint(255.0 * exposed).astype(np.uint8)
    return pixels
