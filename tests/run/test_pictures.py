"""Reading pictures as they come: depth, gray, transparency, orientation, and what is none."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import LoadError
from edgekit.run import pictures
from edgekit.run.pictures import Picture, encode_png, read_picture, side_by_side

cv2 = pytest.importorskip("cv2", reason="opencv is not installed")

RNG = np.random.default_rng(0)


def chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk of a PNG file."""
    sums = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + sums


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_what_is_written_is_read(tmp_path: Path, dtype: type, channels: int) -> None:
    values = RNG.integers(0, np.iinfo(dtype).max, (5, 7, channels)).astype(dtype)
    picture = Picture(values[:, :, :3], values[:, :, 3] if channels == 4 else None)
    path = tmp_path / "a.png"
    path.write_bytes(encode_png(picture))
    found = read_picture(path)
    assert (found.size, found.bits) == ((5, 7), 8 * np.dtype(dtype).itemsize)
    assert np.array_equal(found.colour, picture.colour)
    assert (found.alpha is None) == (picture.alpha is None)
    if found.alpha is not None:
        assert np.array_equal(found.alpha, values[:, :, 3])


def test_gray_with_transparency(tmp_path: Path) -> None:
    gray, alpha = RNG.integers(0, 256, (2, 4, 6)).astype(np.uint8)
    rows = b"".join(b"\0" + np.stack((g, a), 1).tobytes() for g, a in zip(gray, alpha, strict=True))
    header = struct.pack(">IIBBBBB", 6, 4, 8, 4, 0, 0, 0)  # 8 bits, gray with alpha
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    found = read_picture(tmp_path / "a.png")
    assert found.alpha is not None
    assert np.array_equal(found.colour, gray[:, :, None])
    assert np.array_equal(found.alpha, alpha)


def turned(data: bytes, orientation: int) -> bytes:
    """Put an EXIF orientation into the bytes of a JPEG."""
    tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    exif = b"Exif\0\0" + tiff
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, -1), (8, 1)])
def test_orientation(tmp_path: Path, orientation: int, turns: int) -> None:
    _, data = cv2.imencode(".jpg", RNG.integers(0, 256, (16, 24, 3)).astype(np.uint8))
    (tmp_path / "flat.jpg").write_bytes(bytes(data))
    (tmp_path / "turned.jpg").write_bytes(turned(bytes(data), orientation))
    flat, upright = (read_picture(tmp_path / f"{name}.jpg") for name in ("flat", "turned"))
    assert np.array_equal(upright.colour, np.rot90(flat.colour, turns))


def test_transparency_turns_along(tmp_path: Path) -> None:
    values = RNG.integers(0, 256, (6, 9, 4)).astype(np.uint8)
    upright = np.ascontiguousarray(np.rot90(values, -1)[:, ::-1])
    assert np.array_equal(pictures._turned_like(values, upright[:, :, :3]), upright)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"no picture at all", "is not an image that OpenCV can decode"),
        (b"\x89PNG\r\n\x1a\n" + bytes(8), "is not an image that OpenCV can decode"),
        (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)),
            "has 60000x60000 pixels, at most 200 million",
        ),
        (b"P5 60000 60000 255\n", "cannot be decoded"),
    ],
)
def test_no_picture(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(LoadError, match=said) as caught:
        read_picture(path)
    assert caught.value.hint


def test_missing_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(LoadError, match="cannot be read"):
            read_picture(path)


def test_floats_are_no_levels(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    cv2.imwrite(str(path), np.zeros((4, 4, 3), np.float32))
    with pytest.raises(LoadError, match="float32 values, expected 8 or 16 bits") as caught:
        read_picture(path)
    assert "16-bit PNG" in caught.value.hint


def test_large_pictures_are_shown_small() -> None:
    before = Picture(np.zeros((1000, 4000, 1), np.uint16))
    after = Picture(np.full((1000, 4000, 3), 200, np.uint8))
    both = side_by_side(before, after)
    assert both.size == (400 + pictures._BAR, 3200)
    assert (both.colour[pictures._BAR :, 1600:] == 200).all()
