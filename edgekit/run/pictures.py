"""Pictures in files, with what a restored picture has to keep: depth, gray and transparency."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import LoadError, OutputError, require

MAX_PIXELS = 200_000_000
"""A larger picture is refused: its pixels alone, in and out, would take more than a gigabyte."""
_REPLACE = "give an intact PNG, JPEG, BMP, WebP, TIFF, PPM or PGM file"
_JPEG, _PNG, _PNG_HEADER = b"\xff\xd8\xff", b"\x89PNG", 24
_SIDE_SHOWN = 1600
_BAR, _INK = 24, 255


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture.

    Attributes:
        colour: ``[H, W, 3]`` RGB or ``[H, W, 1]`` gray, uint8 or uint16.
        alpha: transparency ``[H, W]`` of the same type; ``None`` where there is none.
    """

    colour: np.ndarray
    alpha: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.colour.shape[0], self.colour.shape[1]

    @property
    def bits(self) -> int:
        """Bits of a channel, 8 or 16."""
        return 8 * self.colour.dtype.itemsize


def read_picture(path: Path) -> Picture:
    """Decode a file, turned as its EXIF orientation says.

    Raises:
        LoadError: the file cannot be read, is no picture, or is larger than :data:`MAX_PIXELS`.
    """
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise LoadError(f"'{path}' cannot be read: {error.strerror}", _REPLACE) from error
    if data.size == 0:
        raise LoadError(f"'{path}' is empty", _REPLACE)
    if data[:4].tobytes() == _PNG and data.size >= _PNG_HEADER:
        # Told before decoding, since a few bytes of PNG can hold gigabytes of one colour.
        _check_size(path, *struct.unpack(">II", data[16:_PNG_HEADER].tobytes()))
    cv2 = require("cv2", extra="images")
    whole = None
    # Only the unchanged reading has the transparency, and only the other one is turned upright.
    if data[:3].tobytes() != _JPEG:
        whole = _decode(cv2, data, cv2.IMREAD_UNCHANGED, path)
    if whole is None or whole.ndim == 2 or whole.shape[2] != 4:
        return Picture(_rgb(_decode(cv2, data, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR, path)))
    upright = _decode(cv2, data, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR, path)
    whole = _turned_like(whole, upright)
    colour = _rgb(whole[:, :, :3])
    if (colour == colour[:, :, :1]).all():
        colour = colour[:, :, :1]  # gray with transparency: OpenCV repeats the gray channel
    return Picture(np.ascontiguousarray(colour), np.ascontiguousarray(whole[:, :, 3]))


def _decode(cv2: Any, data: np.ndarray, flags: int, path: Path) -> np.ndarray:
    try:
        found = cv2.imdecode(data, flags)
    except cv2.error as error:  # raised for sizes beyond OpenCV's own limit, and for empty data
        raise LoadError(f"'{path}' cannot be decoded: {error.err or error}", _smaller()) from error
    except MemoryError as error:
        raise LoadError(f"'{path}' does not fit into memory", _smaller()) from error
    if found is None:
        raise LoadError(
            f"'{path}' is not an image that OpenCV can decode ({data.size} bytes)", _REPLACE
        )
    image: np.ndarray = found
    if image.dtype not in (np.uint8, np.uint16):
        raise LoadError(
            f"'{path}' holds {image.dtype} values, expected 8 or 16 bits a channel",
            "convert it, for example to a 16-bit PNG",
        )
    _check_size(path, image.shape[1], image.shape[0])
    return image


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise LoadError(
            f"'{path}' has {width}x{height} pixels, at most {MAX_PIXELS / 1e6:.0f} million "
            "are taken",
            _smaller(),
        )


def _smaller() -> str:
    return "cut it into parts, or make it smaller"


def _rgb(image: np.ndarray) -> np.ndarray:
    if image.ndim == 2:
        return image[:, :, None]
    return np.ascontiguousarray(image[:, :, ::-1])


def _turned_like(whole: np.ndarray, upright: np.ndarray) -> np.ndarray:
    """Turn and mirror ``[H, W, 4]`` so that its colours are those of ``[H, W, 3]``, if they can."""
    for turns in range(4):
        turned = np.rot90(whole, turns)
        for candidate in (turned, turned[:, ::-1]):
            if candidate.shape[:2] == upright.shape[:2] and np.array_equal(
                candidate[:, :, :3], upright
            ):
                return candidate
    return whole


def encode_png(picture: Picture) -> bytes:
    """Return the bytes of a PNG file.

    Raises:
        OutputError: OpenCV cannot write such a picture.
    """
    cv2 = require("cv2", extra="images")
    colour, alpha = picture.colour, picture.alpha
    if alpha is not None:
        if colour.shape[2] == 1:
            colour = np.repeat(colour, 3, axis=2)
        bgr = np.concatenate((colour[:, :, ::-1], alpha[:, :, None]), axis=2)
    else:
        bgr = colour[:, :, ::-1] if colour.shape[2] == 3 else colour
    done, data = cv2.imencode(".png", np.ascontiguousarray(bgr))
    if not done:
        raise OutputError(f"OpenCV cannot write a PNG of {list(bgr.shape)}", "use smaller pictures")
    return bytes(data)


def side_by_side(before: Picture, after: Picture) -> Picture:
    """Return both pictures beside each other under their names, 8 bits, small enough to look at.

    Each is at most 1600 pixels high and wide; transparency is left out.
    """
    cv2 = require("cv2", extra="images")
    height, width = after.size
    shrink = min(1.0, _SIDE_SHOWN / max(height, width))
    shown = max(round(width * shrink), 1), max(round(height * shrink), 1)
    halves = []
    for name, picture in (("before", before), ("after", after)):
        image = picture.colour
        if picture.bits == 16:
            image = (image // 257).astype(np.uint8)
        if image.shape[2] == 1:
            image = np.repeat(image, 3, axis=2)
        if (image.shape[1], image.shape[0]) != shown:
            image = cv2.resize(image, shown, interpolation=cv2.INTER_AREA)
        bar = np.zeros((_BAR, shown[0], 3), np.uint8)
        cv2.putText(bar, name, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (_INK,) * 3, 1, cv2.LINE_AA)
        halves.append(np.concatenate((bar, image)))
    return Picture(np.concatenate(halves, axis=1))
