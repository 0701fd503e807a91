"""Smooth gradients: skies, walls and out-of-focus grounds, where a restoration must add nothing."""

from __future__ import annotations

import numpy as np


def gradient(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return a picture ``[size, size, 3]``, float32 from 0 to 1, that blends four colours.

    Args:
        rng: source of everything random.
        size: height and width, pixels.
    """
    corners = rng.uniform(0.0, 1.0, (2, 2, 3))
    corners = corners.mean((0, 1)) + rng.uniform(0.1, 0.6) * (corners - corners.mean((0, 1)))
    bend = rng.uniform(0.5, 2.0, 2)
    ramp = np.linspace(0.0, 1.0, size)
    down, right = (ramp ** bend[0])[:, None, None], (ramp ** bend[1])[None, :, None]
    above = corners[0, 0] * (1.0 - right) + corners[0, 1] * right
    below = corners[1, 0] * (1.0 - right) + corners[1, 1] * right
    mixed: np.ndarray = above * (1.0 - down) + below * down
    return mixed.astype(np.float32)
