"""Dead leaves: shapes that cover one another, with the statistics of photographs.

A photograph is a pile of objects that hide one another. Discs of radius ``r`` with density
``p(r) ~ r^-3`` (Lee, Mumford and Huang, 2001) give edges at every scale and a spectrum that falls
as natural ones do. Here half of the leaves are rectangles, for straight edges and corners, and
each is shaded along a random direction; some carry a grating, for fine texture.
"""

from __future__ import annotations

import math

import numpy as np

_SMALLEST = 2.5  # pixels; finer detail comes from edges and gratings
_LARGEST = 0.4  # of the side
_LEAVES = 0.02  # for each pixel: their areas add up to about three times the picture's
_SATURATION = 0.45  # photographs are greyer than uniform colours


def dead_leaves(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return a picture ``[size, size, 3]``, float32 from 0 to 1.

    Args:
        rng: source of everything random.
        size: height and width, pixels.
    """
    palette = rng.uniform(0.0, 1.0, (5, 3)).astype(np.float32)
    grey = palette.mean(1, keepdims=True)
    palette = grey + np.float32(_SATURATION) * (palette - grey)
    image: np.ndarray = np.broadcast_to(palette[0], (size, size, 3)).copy()
    count = int(_LEAVES * size * size)
    radii = _radii(rng, count, _SMALLEST, _LARGEST * size)
    for radius in np.sort(radii[: count // 2])[::-1]:  # large ones first, so that some are whole
        _lay(image, rng, float(radius), palette)
    for radius in radii[count // 2 :]:
        _lay(image, rng, float(radius), palette)
    np.clip(image, 0.0, 1.0, out=image)
    return image


def _radii(rng: np.random.Generator, count: int, least: float, most: float) -> np.ndarray:
    """Draw from the density ``r^-3`` between two radii by inverting its distribution."""
    uniform = rng.uniform(0.0, 1.0, count)
    radii: np.ndarray = (least**-2 - uniform * (least**-2 - most**-2)) ** -0.5
    return radii


def _lay(image: np.ndarray, rng: np.random.Generator, radius: float, palette: np.ndarray) -> None:
    """Paint one leaf over what is there, with edges a pixel wide."""
    size = len(image)
    row, column = rng.uniform(-0.1, 1.1, 2) * size
    angle, phase, shade, frequency = rng.uniform(0.0, 1.0, 4)
    aspect = float(rng.uniform(0.4, 1.0))
    is_disc, is_striped = rng.uniform(0.0, 1.0, 2) < (0.5, 0.15)
    colour = palette[rng.integers(len(palette))] + rng.normal(0.0, 0.08, 3)
    reach = radius + 1.0
    top, bottom = _span(row, reach, size)
    left, right = _span(column, reach, size)
    if top >= bottom or left >= right:
        return
    y = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(row)
    x = np.arange(left, right, dtype=np.float32)[None] - np.float32(column)
    cosine, sine = math.cos(math.pi * angle), math.sin(math.pi * angle)
    along, across = cosine * x + sine * y, (cosine * y - sine * x) / aspect
    if is_disc:
        inside = radius - np.sqrt(along * along + across * across)
    else:  # the corners of the rectangle touch the disc
        inside = radius / math.sqrt(2.0) - np.maximum(np.abs(along), np.abs(across))
    cover = np.clip(inside + 0.5, 0.0, 1.0)[..., None]
    light = 1.0 + 0.5 * (shade - 0.5) * along / radius
    if is_striped:
        period = 2.5 + 8.0 * frequency
        light = light + 0.2 * np.sin(2.0 * math.pi * (across / period + phase))
    leaf = (colour * light[..., None]).astype(np.float32)
    patch = image[top:bottom, left:right]
    patch += cover * (leaf - patch)


def _span(centre: float, reach: float, size: int) -> tuple[int, int]:
    return max(math.floor(centre - reach), 0), min(math.ceil(centre + reach) + 1, size)
