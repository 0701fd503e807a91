"""Lines of writing in an alphabet that does not exist: thin strokes of high contrast.

Each glyph is a handful of strokes between points of a small grid. No font is needed, and none of
it can be read, but edges, junctions and spacing are those of print.
"""

from __future__ import annotations

import itertools

import numpy as np

_GRID = np.array([(y, x) for y in (0.0, 0.5, 1.0) for x in (0.0, 0.5, 1.0)], np.float32)
_WIDTH = 0.6  # of a glyph's height


def write_lines(image: np.ndarray, rng: np.random.Generator) -> None:
    """Write a few lines over a picture ``[H, W, 3]``, float32 from 0 to 1, in place.

    Args:
        image: what is written on.
        rng: source of everything random.
    """
    height, width, _ = image.shape
    for _ in range(rng.integers(1, 4)):
        tall = float(rng.uniform(7.0, max(height / 5.0, 8.0)))
        stroke = max(tall * float(rng.uniform(0.05, 0.14)), 0.6)
        row = float(rng.uniform(0.0, max(height - tall, 1.0)))
        column = float(rng.uniform(0.0, width / 2.0))
        ground = image[int(row), min(int(column), width - 1)].mean()
        colour = rng.uniform(0.0, 0.25, 3) if ground > 0.5 else rng.uniform(0.75, 1.0, 3)
        for _ in range(rng.integers(3, 16)):
            _write_glyph(image, rng, (row, column), tall, stroke, colour.astype(np.float32))
            column += tall * _WIDTH + 2.5 * stroke
            if rng.uniform() < 0.15:
                column += tall * _WIDTH


def _write_glyph(
    image: np.ndarray,
    rng: np.random.Generator,
    corner: tuple[float, float],
    tall: float,
    stroke: float,
    colour: np.ndarray,
) -> None:
    """Write one glyph whose upper left corner is at ``corner``."""
    path = rng.permutation(len(_GRID))[: rng.integers(3, 6)]
    row, column = corner
    points = _GRID[path] * (tall, tall * _WIDTH) + (row, column)
    top, left = max(int(row - stroke - 1), 0), max(int(column - stroke - 1), 0)
    bottom = min(int(row + tall + stroke + 2), image.shape[0])
    right = min(int(column + tall * _WIDTH + stroke + 2), image.shape[1])
    if top >= bottom or left >= right:
        return
    y, x = np.mgrid[top:bottom, left:right].astype(np.float32)
    place = np.stack((y, x), -1)
    distance = np.full(y.shape, np.inf, np.float32)
    for start, end in itertools.pairwise(points):
        np.minimum(distance, _distance(place, start, end), out=distance)
    ink = np.clip(stroke / 2.0 - distance + 0.5, 0.0, 1.0)[..., None].astype(np.float32)
    patch = image[top:bottom, left:right]
    patch += ink * (colour - patch)


def _distance(place: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return the distance ``[H, W]`` of points ``[H, W, 2]`` from a line between two points."""
    line = end - start
    share = np.clip(((place - start) @ line) / float(line @ line), 0.0, 1.0)
    away: np.ndarray = np.linalg.norm(place - start - share[..., None] * line, axis=-1)
    return away
