"""Drawn classes for few-shot learning: training data with no download."""

from __future__ import annotations

from functools import cache

import numpy as np

from edgekit.procedural.shapes import Figure, draw_shape, drawn_figure

from .class_images import ClassImages, FewShotData

_PARTS = {"base": (0, 64, 100), "validation": (64, 16, 40), "novel": (80, 20, 40)}
"""First class, classes, pictures of each class."""
_CLASSES, _PICTURES = 0, 1  # streams of random numbers
_SEED = 7


def drawn_shapes(side: int) -> FewShotData:
    """Return 64 base, 16 validation and 20 novel classes, the same in every run.

    Args:
        side: height and width of a picture, pixels.
    """
    parts = {name: _part(*sizes, side) for name, sizes in _PARTS.items()}
    return FewShotData(
        **parts,
        mirrored=False,  # figures are not symmetric: a mirrored one may be another class
        description="drawn shapes (64 base, 16 validation and 20 novel classes)",
        identity=f"drawn shapes {side} {_SEED} {_PARTS}",
    )


def _part(first: int, classes: int, each: int, side: int) -> ClassImages:
    def read(index: int) -> np.ndarray:
        number, copy = first + index // each, index % each
        return draw_shape(
            _figure(number), np.random.default_rng([_SEED, _PICTURES, number, copy]), side
        )

    names = tuple(f"shape {first + k}" for k in range(classes))
    return ClassImages(names, np.repeat(np.arange(classes), each), side, read)


@cache
def _figure(number: int) -> Figure:
    return drawn_figure(np.random.default_rng([_SEED, _CLASSES, number]))
