"""Data sets for few-shot learning on disk: class folders, lists, packed JPEGs, Omniglot."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgekit.datasets import IMAGE_SUFFIXES, list_images, read_image
from edgekit.errors import ConfigError

from .class_images import ClassImages, FewShotData
from .omniglot import is_omniglot, open_omniglot
from .packed_jpegs import open_packed_jpegs

PARTS = ("base", "validation", "novel")
_NAMES = {
    "base": ("base", "train"),
    "validation": ("val", "validation"),
    "novel": ("novel", "test"),
}
LAYOUT = (
    "PATH/{train,val,test}/CLASS/IMAGE (or base, val, novel); "
    "or PATH/CLASS/IMAGE with lists PATH/{train,val,test}.csv, of CLASS names or miniImageNet's "
    "filename,label with the files in PATH/images; "
    "or PATH/CLASS/IMAGE alone, whose last fifth of classes by name is novel; "
    "or an .npz with the arrays jpeg, offsets, labels, wnids, split; "
    "or Omniglot as folder or zip: ALPHABET/CHARACTER/IMAGE"
)
_FEWEST = 2  # classes of a part; an episode needs more, and says so


def open_few_shot_data(path: Path, side: int) -> FewShotData:
    """Open a data set of one of the layouts.

    Args:
        path: folder, ``.npz`` or ``.zip``.
        side: height and width that pictures are cut to, pixels.

    Raises:
        ConfigError: the layout is another one, a part is missing, or parts share a class.
        LoadError: a file cannot be read.
    """
    if not path.exists():
        raise ConfigError(f"--data '{path}' does not exist", f"expected {LAYOUT}")
    if path.is_file():
        if path.suffix.lower() == ".npz":
            return open_packed_jpegs(path, side, LAYOUT)
        if path.suffix.lower() == ".zip":
            return open_omniglot(path, side, LAYOUT)
        raise ConfigError(f"--data '{path}' is no folder, .npz or .zip", f"expected {LAYOUT}")
    split = _split_folders(path) or _listed(path)
    if split is None and is_omniglot(path):
        return open_omniglot(path, side, LAYOUT)
    if split is None:
        split = _by_name(path)
    _check_parts(path, split)
    files = {name: _files_part(classes, side) for name, classes in split.items()}
    counts = ", ".join(f"{len(files[name].names)} {name}" for name in PARTS)
    return FewShotData(
        files["base"],
        files["validation"],
        files["novel"],
        mirrored=True,
        description=f"'{path}' ({counts} classes)",
        identity=f"folders {_digest(split)}",
    )


_Classes = Mapping[str, Sequence[Path]]
"""Image files by class name."""


def _split_folders(path: Path) -> dict[str, _Classes] | None:
    """Return the classes of each part from folders named after the parts, if there are any."""
    found: dict[str, _Classes] = {}
    for part, names in _NAMES.items():
        folder = next((path / name for name in names if (path / name).is_dir()), None)
        if folder is not None:
            found[part] = _class_folders(folder)
    return found or None


def _class_folders(folder: Path) -> dict[str, Sequence[Path]]:
    inside = sorted(
        item for item in folder.iterdir() if item.is_dir() and not item.name.startswith(".")
    )
    if not inside:
        raise ConfigError(f"'{folder}' holds no class folder", f"expected {LAYOUT}")
    return {item.name: list_images(item) for item in inside}


def _listed(path: Path) -> dict[str, _Classes] | None:
    """Return the classes of each part from lists, if there are any."""
    found: dict[str, _Classes] = {}
    for part, names in _NAMES.items():
        file = next((path / f"{n}.csv" for n in names if (path / f"{n}.csv").is_file()), None)
        if file is not None:
            found[part] = _read_list(path, file)
    return found or None


def _read_list(path: Path, file: Path) -> _Classes:
    try:
        with file.open(newline="", encoding="utf-8") as text:
            rows = [row for row in csv.reader(text) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"'{file}' cannot be read: {error}", f"expected {LAYOUT}") from error
    if rows and [cell.strip().lower() for cell in rows[0][:2]] == ["filename", "label"]:
        rows = rows[1:]
    classes: dict[str, list[Path]] = {}
    for number, row in enumerate(rows, 1):
        cells = [cell.strip() for cell in row]
        if len(cells) == 1:
            classes[cells[0]] = list_images(_below(path, cells[0], file))
        elif len(cells) == 2:
            classes.setdefault(cells[1], []).append(_below(path / "images", cells[0], file))
        else:
            raise ConfigError(
                f"'{file}', entry {number}: {len(cells)} cells, expected CLASS or filename,label",
                f"expected {LAYOUT}",
            )
    return classes


def _below(folder: Path, name: str, file: Path) -> Path:
    """Return what a list names, which must lie in the data set."""
    found = folder / name
    if not found.exists() or not found.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"'{file}' names '{name}', which '{folder}' lacks", f"expected {LAYOUT}")
    return found


def _by_name(path: Path) -> dict[str, _Classes]:
    """Split class folders without any list: 64, 16 and 20 of 100 by name."""
    loose = [item.name for item in path.iterdir() if item.suffix.lower() in IMAGE_SUFFIXES]
    if loose:
        raise ConfigError(
            f"--data '{path}' holds image files such as '{loose[0]}', and no classes",
            f"expected {LAYOUT}",
        )
    classes = _class_folders(path)
    names = list(classes)
    first, second = round(0.64 * len(names)), round(0.8 * len(names))
    ends = {"base": names[:first], "validation": names[first:second], "novel": names[second:]}
    return {part: {name: classes[name] for name in members} for part, members in ends.items()}


def _check_parts(path: Path, split: Mapping[str, _Classes]) -> None:
    for part in PARTS:
        if len(split.get(part, {})) < _FEWEST:
            raise ConfigError(
                f"--data '{path}' has {len(split.get(part, {}))} classes for '{part}' "
                f"({' or '.join(_NAMES[part])}), at least {_FEWEST} are needed",
                f"expected {LAYOUT}",
            )
    for first, second in (("base", "validation"), ("base", "novel"), ("validation", "novel")):
        shared = sorted(set(split[first]) & set(split[second]))
        if shared:
            raise ConfigError(
                f"--data '{path}': class '{shared[0]}' is in {first} and in {second}",
                "a class that was learned from cannot be novel: take it out of one of both",
            )


def _files_part(classes: _Classes, side: int) -> ClassImages:
    files = [file for members in classes.values() for file in members]
    sizes = [len(members) for members in classes.values()]
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return ClassImages(tuple(classes), labels, side, lambda index: read_image(files[index]))


def _digest(split: Mapping[str, _Classes]) -> str:
    """Return a digest of the files' names and sizes."""
    digest = hashlib.sha256()
    for part in PARTS:
        for name, files in split[part].items():
            digest.update(f"{part} {name}\n".encode())
            for file in files:
                digest.update(f"{file.name} {file.stat().st_size}\n".encode())
    return digest.hexdigest()[:16]
