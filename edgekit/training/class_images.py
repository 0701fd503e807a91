"""Pictures with classes, decoded or drawn when they are first asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgekit.preprocess import preprocess
from edgekit.types import Preprocessing


@dataclass
class ClassImages:
    """The pictures of one part of a data set.

    Attributes:
        names: of the classes, in the order of their labels.
        labels: class of each picture, ``[N]`` int64.
        side: height and width of a picture, pixels.
        read: returns picture number i, ``[H, W, 3]`` uint8 of any size; it is cut to a square.
    """

    names: tuple[str, ...]
    labels: np.ndarray
    side: int
    read: Callable[[int], np.ndarray]
    _known: dict[int, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def pictures(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return some pictures, ``[n, side, side, 3]`` uint8."""
        return np.stack([self._picture(int(index)) for index in indices])

    def _picture(self, index: int) -> np.ndarray:
        if index not in self._known:
            self._known[index] = to_square(self.read(index), self.side)
        return self._known[index]


@dataclass(frozen=True)
class FewShotData:
    """Three parts that share no class: learn from, choose by, report on.

    Attributes:
        base, validation, novel: the parts.
        mirrored: whether a mirrored picture still shows its class.
        description: what it is, in words.
        identity: text that differs where the pictures do.
    """

    base: ClassImages
    validation: ClassImages
    novel: ClassImages
    mirrored: bool
    description: str
    identity: str

    def part(self, name: str) -> ClassImages:
        """Return a part by its name."""
        found: ClassImages = {
            "base": self.base,
            "validation": self.validation,
            "novel": self.novel,
        }[name]
        return found


def to_square(image: np.ndarray, side: int) -> np.ndarray:
    """Return the centre of a picture as the zoo's preprocessing cuts it, ``[side, side, 3]``.

    Args:
        image: ``[H, W, 3]`` uint8 RGB.
        side: height and width wanted, pixels.
    """
    if image.shape[:2] == (side, side):
        return image
    pixels = preprocess(image, Preprocessing(resize=side, crop=side, range=255))
    return np.ascontiguousarray(pixels.transpose(1, 2, 0)).astype(np.uint8)
