"""Pictures of any size through a network: padded to what it takes, and in tiles where it is large.

A tile sees a margin of its surroundings. Where that is at least as far as the network looks, its
core is what the whole picture at once would have given.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgekit.preprocess import mirrored

DEFAULT_TILE = 1024
"""Side of a tile, and the root of the number of pixels that run at once."""
_LARGEST_SHARE = 3 / 8  # of a tile for each margin, so that a quarter of it at least is core
_PROBE_SIDE, _SPOT = 512, 16
_MOST_HALVED = 32
_TOLD_APART = 0.25  # of an 8-bit step: what is closer gives the same pixel, or the next one


@dataclass(frozen=True, slots=True)
class Span:
    """One tile along one axis: the network sees ``start`` to ``stop``, ``first`` to ``last`` count.

    ``stop`` may lie behind the end of the picture, where it goes on mirrored.
    """

    start: int
    stop: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Frame:
    """What a network takes along height and width.

    Attributes:
        multiple: sizes are multiples of it.
        fixed: the only height and width, for an artifact that takes no other.
    """

    multiple: int = 1
    fixed: tuple[int, int] | None = None

    @classmethod
    def of_size(cls, height: int, width: int) -> Frame:
        """Return the frame of an artifact that takes one size.

        How often it halves that is not known: tiles begin at multiples of the largest power of
        two that divides both, up to 32.
        """
        both = math.gcd(height, width)
        return cls(min(both & -both, _MOST_HALVED), (height, width))

    def tile(self, height: int, width: int, side: int) -> tuple[int, int] | None:
        """Return height and width of a tile; ``None`` where the picture runs as a whole."""
        if self.fixed is not None:
            whole = height <= self.fixed[0] and width <= self.fixed[1]
            return None if whole else self.fixed
        if height * width <= side * side:
            return None
        side = max(side // self.multiple, 1) * self.multiple
        return (side, side)

    def padded(self, size: int, axis: int) -> int:
        """Return the size that a picture of ``size`` is padded to."""
        grown = -(-size // self.multiple) * self.multiple
        return grown if self.fixed is None else max(grown, self.fixed[axis])


def largest_margin(tile: int, multiple: int) -> int:
    """Return the widest margin that leaves a tile a core."""
    return int(tile * _LARGEST_SHARE) // multiple * multiple


def spans(size: int, padded: int, tile: int | None, margin: int, multiple: int) -> list[Span]:
    """Divide an axis into tiles of one size that overlap by two margins at least.

    Args:
        size: pixels of the picture.
        padded: what it is padded to, a multiple of ``multiple``.
        tile: pixels of a tile, a multiple of ``multiple``; ``None`` for one of the whole axis.
        margin: pixels at each inner edge of a tile that do not count.
        multiple: tiles begin at multiples of it, so that each sees the grid of a strided network
            as the whole picture does.
    """
    if tile is None or padded <= tile:
        return [Span(0, padded, 0, size)]
    step = max((tile - 2 * margin) // multiple * multiple, multiple)
    starts = [*range(0, padded - tile, step), padded - tile]
    # Two neighbours meet in the middle of what both see.
    meet = [(after + before + tile) // 2 for before, after in itertools.pairwise(starts)]
    edges = [0, *(min(edge, size) for edge in meet), size]
    found = [
        Span(start, start + tile, edges[index], edges[index + 1])
        for index, start in enumerate(starts)
    ]
    return [span for span in found if span.first < span.last]


def cut(image: np.ndarray, row: Span, column: Span) -> np.ndarray:
    """Return what a tile sees of ``[H, W, C]``, mirrored where it reaches behind the end."""
    height, width = image.shape[:2]
    if row.stop <= height and column.stop <= width:
        return image[row.start : row.stop, column.start : column.stop]
    at = np.ix_(mirrored(row.start, row.stop, height), mirrored(column.start, column.stop, width))
    seen: np.ndarray = image[at]
    return seen


def reach(
    run: Callable[[np.ndarray], np.ndarray], size: tuple[int, int], channels: int
) -> int | None:
    """Measure how far a network looks: over how many pixels a spot changes what it puts out.

    Two pictures of noise differ in one spot in the middle. A difference of less than a quarter of
    an 8-bit step does not count.

    Args:
        run: takes pixels ``[H, W, channels]`` uint8 and returns the network's picture
            ``[C, H * scale, W * scale]`` in units of 8-bit steps.
        size: height and width of the pictures.
        channels: of the pictures.

    Returns:
        Pixels of the input; ``None`` where the difference gets to an edge, so that the network
        may look farther than that.
    """
    picture = _noise(size, channels)
    other = picture.copy()
    firsts = [(side - _SPOT) // 2 for side in size]
    spot = tuple(slice(max(first, 0), first + _SPOT) for first in firsts)
    other[spot] = 255 - other[spot]
    before, after = run(picture), run(other)
    scale = before.shape[1] / size[0]
    changed = (np.abs(after - before) > _TOLD_APART).any(axis=0)
    farthest = 0
    for at, first, side in zip(np.nonzero(changed), firsts, size, strict=True):
        if at.size == 0:
            return 0
        low, high = int(at.min() / scale), int(at.max() / scale)
        if low == 0 or high >= side - 1:
            return None
        farthest = max(farthest, first - low, high - (first + _SPOT - 1))
    return farthest


def _noise(size: tuple[int, int], channels: int) -> np.ndarray:
    """Return ``[H, W, channels]`` uint8, fine noise over blocks of 8 pixels."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 192, (-(-size[0] // 8), -(-size[1] // 8), channels))
    coarse = np.kron(blocks, np.ones((8, 8, 1), np.int64))[: size[0], : size[1]]
    return (coarse + rng.integers(0, 64, (*size, channels))).astype(np.uint8)


def probe_size(tile: tuple[int, int], frame: Frame) -> tuple[int, int]:
    """Return the size of the pictures for :func:`reach`: of a tile, or smaller where it may be."""
    if frame.fixed is not None:
        return frame.fixed
    side = max(min(*tile, _PROBE_SIDE) // frame.multiple, 1) * frame.multiple
    return side, side
