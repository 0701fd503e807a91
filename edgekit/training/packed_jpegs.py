"""Few-shot data in one ``.npz``: JPEG files one after the other, and what class each shows."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from pathlib import Path

import numpy as np

from edgekit.errors import ConfigError, LoadError, require

from .class_images import ClassImages, FewShotData

_ARRAYS = ("jpeg", "offsets", "labels", "wnids", "split")
_SPLIT = {"base": "base", "validation": "val", "novel": "novel"}


def open_packed_jpegs(path: Path, side: int, layout: str) -> FewShotData:
    """Open an ``.npz``.

    Arrays: ``jpeg`` uint8 (all files), ``offsets`` int64 (N + 1), ``labels`` integers (N),
    ``wnids`` text (names of the classes), ``split`` text (``base``, ``val`` or ``novel`` for each).

    Args:
        path: the file.
        side: height and width that pictures are cut to, pixels.
        layout: what is expected, for messages.

    Raises:
        ConfigError: an array is missing or does not fit the others.
        LoadError: the file, or a picture in it, cannot be read.
    """
    arrays = _read(path, layout)
    offsets, labels, split = arrays["offsets"], arrays["labels"].astype(np.int64), arrays["split"]
    _check(path, arrays, labels, layout)

    def part(name: str) -> ClassImages:
        members = np.flatnonzero(split == _SPLIT[name])
        chosen = np.flatnonzero(np.isin(labels, members))
        if len(members) < 2 or len(np.unique(labels[chosen])) < len(members):
            raise ConfigError(
                f"'{path}' has {len(members)} classes in the part '{_SPLIT[name]}', or one without "
                "images; at least 2 are needed",
                f"expected {layout}",
            )

        def read(index: int) -> np.ndarray:
            number = int(chosen[index])
            file = arrays["jpeg"][int(offsets[number]) : int(offsets[number + 1])]
            return _decoded(file, f"{path}, image {number}")

        names = tuple(str(arrays["wnids"][member]) for member in members)
        return ClassImages(names, np.searchsorted(members, labels[chosen]), side, read)

    parts = {name: part(name) for name in _SPLIT}
    counts = ", ".join(f"{len(found.names)} {name}" for name, found in parts.items())
    digest = hashlib.sha256(arrays["jpeg"].tobytes() + labels.tobytes()).hexdigest()[:16]
    return FewShotData(
        **parts,
        mirrored=True,
        description=f"'{path}' ({counts} classes)",
        identity=f"packed {digest}",
    )


def _read(path: Path, layout: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:  # without pickling it runs no code
            missing = [name for name in _ARRAYS if name not in archive.files]
            if missing:
                raise ConfigError(
                    f"'{path}' lacks the array '{missing[0]}' (it holds {sorted(archive.files)})",
                    f"expected {layout}",
                )
            return {name: archive[name] for name in _ARRAYS}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise LoadError(f"'{path}' is not a readable .npz: {error}") from error


def _check(path: Path, arrays: dict[str, np.ndarray], labels: np.ndarray, layout: str) -> None:
    offsets, count = arrays["offsets"], len(labels)
    wrong = None
    if arrays["jpeg"].dtype != np.uint8 or arrays["jpeg"].ndim != 1:
        wrong = "'jpeg' is not a row of uint8"
    elif offsets.shape != (count + 1,) or not np.issubdtype(offsets.dtype, np.integer):
        wrong = f"'offsets' is not {count + 1} integers, one more than labels"
    elif count == 0 or int(offsets[-1]) > len(arrays["jpeg"]) or (np.diff(offsets) <= 0).any():
        wrong = "'offsets' does not rise from file to file within 'jpeg'"
    elif arrays["wnids"].shape != arrays["split"].shape or arrays["wnids"].ndim != 1:
        wrong = "'wnids' and 'split' are not one text for each class"
    elif labels.min() < 0 or labels.max() >= len(arrays["wnids"]):
        wrong = f"a label lies outside of the {len(arrays['wnids'])} classes"
    if wrong is not None:
        raise ConfigError(f"'{path}': {wrong}", f"expected {layout}")


def _decoded(file: np.ndarray, where: str) -> np.ndarray:
    cv2 = require("cv2", extra="images")
    picture = cv2.imdecode(file, cv2.IMREAD_COLOR)  # colour: grey files otherwise have one channel
    if picture is None:
        raise LoadError(f"'{where}' is not a picture that OpenCV can decode")
    return np.ascontiguousarray(picture[:, :, ::-1])
