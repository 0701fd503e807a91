"""Tiles cover a picture once, and how far a network looks is measured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.preprocess import mirrored
from edgekit.run.tiles import Frame, cut, largest_margin, reach, spans


@given(st.integers(1, 40), st.integers(0, 60))
def test_mirrored_is_numpy_reflect(size: int, more: int) -> None:
    row = np.arange(size)
    mode = "reflect" if size > 1 else "edge"
    assert np.array_equal(mirrored(0, size + more, size), np.pad(row, (0, more), mode=mode))


@given(st.integers(1, 500), st.sampled_from([1, 2, 4, 8]), st.integers(8, 32), st.integers(0, 12))
def test_every_pixel_belongs_to_one_tile(size: int, multiple: int, steps: int, margin: int) -> None:
    tile = steps * multiple
    margin = min(margin * multiple, largest_margin(tile, multiple))
    padded = Frame(multiple).padded(size, 0)
    found = spans(size, padded, tile, margin, multiple)
    covered = [at for span in found for at in range(span.first, span.last)]
    assert covered == list(range(size))
    for span in found:
        assert span.start % multiple == 0
        assert span.stop - span.start == (tile if padded > tile else padded)
        # What counts is a margin away from an edge that is none of the picture.
        assert span.start in (0, span.first - max(margin, span.first - span.start))
        assert span.first == 0 or span.first - span.start >= margin
        assert span.last == size or span.stop - span.last >= margin


def test_cut_is_the_padded_picture() -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 14, 3)).astype(np.uint8)
    padded = np.pad(image, ((0, 3), (0, 2), (0, 0)), mode="reflect")
    for row in spans(9, 12, 8, 2, 4):
        for column in spans(14, 16, 8, 2, 4):
            expected = padded[row.start : row.stop, column.start : column.stop]
            assert np.array_equal(cut(image, row, column), expected)


def blur(pixels: np.ndarray, radius: int, scale: int = 1) -> np.ndarray:
    """The mean over ``2 radius + 1`` pixels each way, twice as large where ``scale`` is 2."""
    padded = np.pad(pixels.astype(np.float64), ((radius, radius), (radius, radius), (0, 0)))
    sums = sum(
        padded[y : y + pixels.shape[0], x : x + pixels.shape[1]]
        for y in range(2 * radius + 1)
        for x in range(2 * radius + 1)
    )
    values = np.asarray(sums).transpose(2, 0, 1) / (2 * radius + 1) ** 2
    return values.repeat(scale, 1).repeat(scale, 2)


@pytest.mark.parametrize(("radius", "scale"), [(0, 1), (3, 1), (5, 2)])
def test_reach_of_a_blur(radius: int, scale: int) -> None:
    assert reach(lambda pixels: blur(pixels, radius, scale), (64, 80), 3) == radius


def test_reach_of_what_sees_all() -> None:
    def brighten(pixels: np.ndarray) -> np.ndarray:
        return pixels.transpose(2, 0, 1) + 100.0 * pixels.mean()

    assert reach(brighten, (64, 64), 3) is None


def test_reach_of_a_constant() -> None:
    assert reach(lambda pixels: np.zeros((3, *pixels.shape[:2])), (64, 64), 3) == 0


def test_when_a_picture_runs_in_tiles() -> None:
    free = Frame(4)
    assert free.tile(720, 1280, 1024) is None
    assert free.tile(1080, 1920, 1024) == (1024, 1024)
    assert free.tile(1080, 1920, 1023) == (1020, 1020)
    assert Frame.of_size(96, 160).multiple == 32
    assert Frame.of_size(84, 84).multiple == 4
    assert Frame.of_size(32, 40).tile(33, 8, 1024) == (32, 40)
    assert Frame.of_size(32, 40).tile(32, 40, 8) is None
