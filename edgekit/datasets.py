"""Labelled and unlabelled images on disk, decoded one at a time by OpenCV."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from edgekit.errors import ConfigError, LoadError, require

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_INDEXED_NAME = re.compile(r"(\d+)_")
_LAYOUTS = (
    "PATH is a folder of files named <index>_*.jpg, a folder with one sub-folder for each class, "
    "or an .npz with arrays 'images' and 'labels'"
)


class ImageDataset(Protocol):
    """Images with labels; an image is decoded when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, int | None]:
        """Return ``[H, W, C]`` uint8 (RGB, or gray with C = 1) and the class index, if known."""
        ...

    def __iter__(self) -> Iterator[tuple[np.ndarray, int | None]]: ...


@dataclass(frozen=True, slots=True)
class FileImages:
    """Image files; ``labels`` is ``None`` for an unlabelled folder."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int | None]:
        label = None if self.labels is None else self.labels[index]
        return read_image(self.paths[index]), label

    def __iter__(self) -> Iterator[tuple[np.ndarray, int | None]]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True, slots=True)
class ArrayImages:
    """Images of one size in memory: ``images`` ``[N, H, W, C]`` uint8, ``labels`` ``[N]``."""

    images: np.ndarray
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int | None]:
        label = None if self.labels is None else int(self.labels[index])
        return self.images[index], label

    def __iter__(self) -> Iterator[tuple[np.ndarray, int | None]]:
        return (self[index] for index in range(len(self)))


def open_dataset(
    path: Path,
    *,
    num_classes: int | None = None,
    classes: Path | None = None,
    labelled: bool = True,
) -> ImageDataset:
    """Open a set of images in one of the layouts of the module.

    Args:
        path: folder of ``<index>_*`` files, folder of class folders, or ``.npz``.
        num_classes: classes of the network; labels are checked against it.
        classes: file with one class name on each line, whose line number is the index; needed
            for class folders when their count is not ``num_classes``.
        labelled: whether labels are needed; without, any folder of images or of folders of
            images will do.

    Raises:
        ConfigError: the layout is none of these, is mixed or empty, or a label is out of range.
        LoadError: the ``.npz`` cannot be read.
    """
    if not path.exists():
        raise ConfigError(f"'{path}' does not exist", _LAYOUTS)
    if path.is_dir():
        if not labelled:
            return FileImages(tuple(_image_files(path) or _images_below(path)))
        return _open_folder(path, num_classes, classes)
    if path.suffix.lower() == ".npz":
        return _open_npz(path, num_classes, labelled)
    raise ConfigError(f"'{path}' is not a data set", _LAYOUTS)


def list_images(directory: Path) -> list[Path]:
    """Return the image files directly inside ``directory``, sorted by name.

    Raises:
        ConfigError: ``directory`` is not a folder or holds no image.
    """
    if not directory.is_dir():
        raise ConfigError(f"'{directory}' is not a folder", "give a folder of image files")
    found = _image_files(directory)
    if not found:
        raise ConfigError(
            f"'{directory}' holds no image file", f"known endings: {', '.join(IMAGE_SUFFIXES)}"
        )
    return found


def read_image(path: Path) -> np.ndarray:
    """Decode an image file with OpenCV into ``[H, W, 3]`` RGB uint8.

    Raises:
        LoadError: the file cannot be read or is not an image.
    """
    cv2 = require("cv2", extra="images")
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise LoadError(f"'{path}' cannot be read: {error.strerror}") from error
    # OpenCV raises on an empty buffer and returns None for one that it cannot decode.
    decoded = None if data.size == 0 else cv2.imdecode(data, cv2.IMREAD_COLOR)
    if decoded is None:
        raise LoadError(
            f"'{path}' is not an image that OpenCV can decode ({data.size} bytes)",
            "remove the file or replace it by an intact copy",
        )
    rgb: np.ndarray = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    return rgb


def _image_files(directory: Path) -> list[Path]:
    return sorted(
        item
        for item in directory.iterdir()
        if item.suffix.lower() in IMAGE_SUFFIXES
        and not item.name.startswith(".")
        and item.is_file()
    )


def _images_below(path: Path) -> list[Path]:
    folders = sorted(item for item in path.iterdir() if item.is_dir())
    found = [file for folder in folders for file in _image_files(folder)]
    if not found:
        raise ConfigError(f"'{path}' holds no image file, nor does a folder in it", _LAYOUTS)
    return found


def _open_folder(path: Path, num_classes: int | None, classes: Path | None) -> FileImages:
    files = _image_files(path)
    folders = sorted(
        item for item in path.iterdir() if item.is_dir() and not item.name.startswith(".")
    )
    if files and folders:
        raise ConfigError(
            f"'{path}' is mixed: image file '{files[0].name}' beside folder '{folders[0].name}'",
            _LAYOUTS,
        )
    if folders:
        dataset = _from_class_folders(path, folders, num_classes, classes)
    elif files:
        dataset = _from_indexed_files(files)
    else:
        raise ConfigError(f"'{path}' holds neither image files nor class folders", _LAYOUTS)
    for file, label in zip(dataset.paths, dataset.labels or (), strict=True):
        _check_label(label, num_classes, str(file))
    return dataset


def _from_indexed_files(files: list[Path]) -> FileImages:
    labels = []
    for file in files:
        match = _INDEXED_NAME.match(file.name)
        if match is None:
            raise ConfigError(f"'{file}' has no class index in front of its name", _LAYOUTS)
        labels.append(int(match.group(1)))
    return FileImages(tuple(files), tuple(labels))


def _from_class_folders(
    path: Path, folders: list[Path], num_classes: int | None, classes: Path | None
) -> FileImages:
    names = [folder.name for folder in folders]
    if classes is not None:
        index = _read_class_names(classes)
        unknown = [name for name in names if name not in index]
        if unknown:
            raise ConfigError(f"class folder '{path / unknown[0]}' is not named in '{classes}'")
    elif num_classes is None or len(names) == num_classes:
        index = {name: number for number, name in enumerate(names)}
    else:
        raise ConfigError(
            f"'{path}' has {len(names)} class folders, the network has {num_classes} classes",
            "name the class of each index with --classes FILE, one name on each line",
        )
    paths: list[Path] = []
    labels: list[int] = []
    for folder in folders:
        inside = _image_files(folder)
        paths.extend(inside)
        labels.extend([index[folder.name]] * len(inside))
    if not paths:
        raise ConfigError(f"the class folders of '{path}' hold no image file", _LAYOUTS)
    return FileImages(tuple(paths), tuple(labels))


def _read_class_names(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--classes: '{path}' cannot be read: {error}") from error
    index: dict[str, int] = {}
    for number, line in enumerate(lines):
        name = line.strip()
        if name in index:
            raise ConfigError(f"--classes: '{path}' names '{name}' twice, line {number + 1}")
        if name:
            index[name] = number
    return index


def _open_npz(path: Path, num_classes: int | None, labelled: bool) -> ArrayImages:
    images, labels = _load_arrays(path, labelled)
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ConfigError(
            f"'{path}': 'images' is {images.dtype} {list(images.shape)}, "
            "expected uint8 [N, H, W, 3], [N, H, W, 1] or [N, H, W]"
        )
    if len(images) == 0:
        raise ConfigError(f"'{path}' holds no image")
    if labels is not None:
        _check_labels(path, labels, len(images), num_classes)
    return ArrayImages(images, labels)


def _load_arrays(path: Path, labelled: bool) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        # Without pickling a file cannot run code; an object array raises ValueError.
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise LoadError(f"'{path}' is not a readable .npz: it holds a single bare array")
        with archive:
            names = archive.files
            if "images" not in names or (labelled and "labels" not in names):
                raise ConfigError(
                    f"'{path}' holds the arrays {sorted(names)}, expected 'images' and 'labels'",
                    _LAYOUTS,
                )
            labels = archive["labels"] if "labels" in names else None
            return archive["images"], labels
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise LoadError(f"'{path}' is not a readable .npz: {error}") from error


def _check_labels(path: Path, labels: np.ndarray, count: int, num_classes: int | None) -> None:
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise ConfigError(
            f"'{path}': 'labels' is {labels.dtype} {list(labels.shape)}, "
            f"expected {count} integers, one for each image"
        )
    for label in (int(labels.min()), int(labels.max())):
        _check_label(label, num_classes, str(path))


def _check_label(label: int, num_classes: int | None, where: str) -> None:
    if label < 0 or (num_classes is not None and label >= num_classes):
        raise ConfigError(
            f"'{where}': label {label} is out of range, the network has {num_classes} classes",
            "check that the labels belong to this network; indices start at 0",
        )
