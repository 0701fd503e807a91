"""Omniglot: characters of many alphabets, twenty drawings each (MIT licence).

The parts are alphabets, so that a novel character shares neither shape nor style with base ones.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from edgekit.datasets import IMAGE_SUFFIXES, read_image
from edgekit.errors import ConfigError, LoadError, require

from .class_images import ClassImages, FewShotData

_FEWEST = 4  # alphabets: two for base, one for each of the others
_MOST_BYTES = 1 << 24  # of one drawing in an archive; a real one has hundreds


@dataclass(frozen=True, slots=True)
class _Drawing:
    """One file: its alphabet, character, size in bytes, and how to read it."""

    alphabet: str
    character: str
    size: int
    read: Callable[[], np.ndarray]


def is_omniglot(path: Path) -> bool:
    """Whether a folder holds Omniglot's archives or its folders of alphabets."""
    items = list(path.iterdir())
    if not any(item.is_dir() for item in items):
        return any(item.suffix.lower() == ".zip" for item in items)
    return any(path.glob("*/character*")) or any(path.glob("*/*/character*"))


def open_omniglot(path: Path, side: int, layout: str) -> FewShotData:
    """Open an archive, a folder of archives or unpacked folders.

    Alphabets are sorted by name: the last quarter is novel, the eighth before it for validation.
    An alphabet that two archives have counts once.

    Args:
        path: what to open.
        side: height and width that drawings are cut to, pixels.
        layout: what is expected, for messages.

    Raises:
        ConfigError: there are too few alphabets, or none.
        LoadError: an archive cannot be read.
    """
    alphabets: dict[str, list[_Drawing]] = {}
    for source in _sources(path):
        found: dict[str, list[_Drawing]] = {}
        for drawing in _in_archive(source) if source.is_file() else _in_folder(source):
            found.setdefault(drawing.alphabet, []).append(drawing)
        for name, drawings in found.items():
            alphabets.setdefault(name, drawings)
    names = sorted(alphabets)
    if len(names) < _FEWEST:
        raise ConfigError(
            f"--data '{path}' holds {len(names)} alphabets, at least {_FEWEST} are needed",
            f"expected {layout}",
        )
    novel, validation = max(len(names) // 4, 1), max(len(names) // 8, 1)
    first, second = len(names) - novel - validation, len(names) - novel
    parts = {"base": names[:first], "validation": names[first:second], "novel": names[second:]}
    made = {part: _part(alphabets, members, side) for part, members in parts.items()}
    counts = ", ".join(
        f"{len(made[part].names)} {part} ({', '.join(members)})" for part, members in parts.items()
    )
    return FewShotData(
        **made,
        mirrored=False,
        description=f"Omniglot in '{path}': characters {counts}",
        identity=f"omniglot {_digest(alphabets)}",
    )


def _sources(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    archives = sorted(item for item in path.iterdir() if item.suffix.lower() == ".zip")
    return archives or [path]


def _in_archive(path: Path) -> list[_Drawing]:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise LoadError(f"'{path}' is not a readable zip archive: {error}") from error
    drawings = []
    for item in sorted(archive.infolist(), key=lambda info: info.filename):
        parts = PurePosixPath(item.filename).parts
        if len(parts) < 3 or PurePosixPath(parts[-1]).suffix.lower() not in IMAGE_SUFFIXES:
            continue
        if item.file_size > _MOST_BYTES:
            raise LoadError(f"'{path}': '{item.filename}' claims {item.file_size} bytes")
        drawings.append(_Drawing(parts[-3], parts[-2], item.file_size, _reader(archive, item)))
    return drawings


def _reader(archive: zipfile.ZipFile, item: zipfile.ZipInfo) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        cv2 = require("cv2", extra="images")
        try:
            data = np.frombuffer(archive.read(item), np.uint8)
        except (OSError, zipfile.BadZipFile, zlib.error) as error:
            raise LoadError(f"'{item.filename}' cannot be unpacked: {error}") from error
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
        if picture is None:
            raise LoadError(f"'{item.filename}' is not a picture that OpenCV can decode")
        return np.ascontiguousarray(picture[:, :, ::-1])

    return read


def _in_folder(path: Path) -> list[_Drawing]:
    depth = "*/character*" if any(path.glob("*/character*")) else "*/*/character*"
    drawings = []
    for folder in sorted(path.glob(depth)):
        drawings += [
            _Drawing(folder.parent.name, folder.name, file.stat().st_size, _opener(file))
            for file in sorted(folder.iterdir())
            if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
        ]
    return drawings


def _opener(file: Path) -> Callable[[], np.ndarray]:
    return lambda: read_image(file)


def _part(alphabets: Mapping[str, list[_Drawing]], members: list[str], side: int) -> ClassImages:
    drawings = [drawing for name in members for drawing in alphabets[name]]
    names = list(dict.fromkeys(f"{d.alphabet}/{d.character}" for d in drawings))
    number = {name: index for index, name in enumerate(names)}
    labels = np.array([number[f"{d.alphabet}/{d.character}"] for d in drawings], np.int64)
    return ClassImages(tuple(names), labels, side, lambda index: drawings[index].read())


def _digest(alphabets: Mapping[str, list[_Drawing]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(alphabets):
        for drawing in alphabets[name]:
            digest.update(f"{name}/{drawing.character} {drawing.size}\n".encode())
    return digest.hexdigest()[:16]
