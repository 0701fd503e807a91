"""Evaluation images as network inputs, one at a time.

Written apart from :mod:`edgekit.preprocess`, so that a mistake there cannot hide here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._cases import CASES, Case
from benchmarks._process import answer


class ImageSet:
    """Labelled images of one case; ``count`` of them spread evenly, all if ``None``."""

    def __init__(self, case: Case, data: Path, count: int | None = None) -> None:
        self._case = case
        source = data / case.images
        self._files: list[Path] = []
        if source.suffix == ".npz":
            with np.load(source, allow_pickle=False) as archive:
                self._pixels, self._labels = archive["images"], archive["labels"].tolist()
        else:
            self._files = sorted(source.glob("*.jpg"))
            self._labels = [int(file.name.partition("_")[0]) for file in self._files]
        total = len(self._labels)
        used = total if count is None else min(count, total)
        # Sets are sorted by class: the first images would be of a few classes only.
        self._indices = [index * total // used for index in range(used)]

    def __len__(self) -> int:
        return len(self._indices)

    def label(self, position: int) -> int:
        """Return the class index."""
        return int(self._labels[self._indices[position]])

    def pixels(self, position: int) -> np.ndarray:
        """Return ``[H, W, 3]`` RGB uint8, cropped."""
        index = self._indices[position]
        if not self._files:
            image: np.ndarray = self._pixels[index]
            return image
        import cv2

        decoded = cv2.imread(str(self._files[index]), cv2.IMREAD_COLOR)
        if decoded is None:
            raise ValueError(f"'{self._files[index]}' is no image")
        image = decoded[:, :, ::-1]
        size = self._case.size
        top, left = ((side - size) // 2 for side in image.shape[:2])
        return image[top : top + size, left : left + size]

    def input(self, position: int) -> np.ndarray:
        """Return ``[1, 3, H, W]`` float32, normalized."""
        mean, std = (np.asarray(v, np.float32) for v in (self._case.mean, self._case.std))
        scaled = (self.pixels(position).astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], dtype=np.float32)


def image_set(request: dict[str, Any], count: int | None) -> ImageSet:
    """Open the set that a step's request names."""
    return ImageSet(CASES[request["case"]], Path(request["data"]), count)


def write_images(request: dict[str, Any]) -> dict[str, Any]:
    """Step: write images as lossless files, for a quantizer that reads a folder.

    Request: ``case``, ``data``, ``count``, ``out`` (folder to create).
    """
    import cv2

    images = image_set(request, request["count"])
    folder = Path(request["out"])
    folder.mkdir(parents=True)
    for position in range(len(images)):
        path = folder / f"{images.label(position)}_{position:04}.png"
        cv2.imwrite(str(path), np.ascontiguousarray(images.pixels(position)[:, :, ::-1]))
    return {"count": len(images)}


if __name__ == "__main__":
    answer(write_images)
