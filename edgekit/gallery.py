"""A picture of a set of synthesized images, one row for each class."""

from __future__ import annotations

import numpy as np

from edgekit.preprocess import to_pixels
from edgekit.synthetic import SyntheticSet
from edgekit.types import Preprocessing

_COLUMNS, _ROWS = 10, 20
_GAP = 2
_LEAST_SIDE = 64  # smaller images are enlarged by a whole factor


def gallery(made: SyntheticSet, preprocessing: Preprocessing | None) -> np.ndarray | None:
    """Return ``[H, W, 3]`` uint8 RGB, or ``None`` where the first input is no image.

    Args:
        made: the set; only the first input is shown.
        preprocessing: turns network inputs back into pixels; if ``None`` each image is spread over
            the range of values that it has.
    """
    images = made.inputs[0].numpy()
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        return None
    pixels = np.stack([to_pixels(image, preprocessing) for image in images])
    zoom = max(1, _LEAST_SIDE // max(pixels.shape[1:3]))
    pixels = pixels.repeat(zoom, 1).repeat(zoom, 2)
    labels = np.zeros(len(made), int) if made.labels is None else made.labels.numpy()
    rows = _rows(labels)
    height, width = pixels.shape[1] + _GAP, pixels.shape[2] + _GAP
    columns = max(len(row) for row in rows)
    sheet = np.full((len(rows) * height + _GAP, columns * width + _GAP, 3), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, index in enumerate(row):
            top, left = y * height + _GAP, x * width + _GAP
            sheet[top : top + height - _GAP, left : left + width - _GAP] = pixels[index]
    return sheet


def _rows(labels: np.ndarray) -> list[np.ndarray]:
    """Return the samples of each row: classes in order, without labels simply ten to a row."""
    if len(set(labels.tolist())) == 1:
        order = np.arange(len(labels))
        parts = [order[at : at + _COLUMNS] for at in range(0, len(order), _COLUMNS)]
        return parts[:_ROWS]
    classes = sorted(set(labels.tolist()))[:_ROWS]
    return [np.flatnonzero(labels == label)[:_COLUMNS] for label in classes]
