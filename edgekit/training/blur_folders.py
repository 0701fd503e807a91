"""Folders of blurred and sharp pictures, as the GoPro set has them, or of sharp ones alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from edgekit.datasets import list_images, read_image
from edgekit.errors import ConfigError
from edgekit.procedural.camera_shake import shake, shake_kernel

from .pictures import Pair

_BLURRED = ("blur_gamma", "blur")  # the first that is there is taken, as in the paper
_LAYOUT = (
    "PATH/train/SCENE/{blur,blur_gamma,sharp}/000001.png and PATH/test/SCENE/... as GoPro has it; "
    "or PATH/SCENE/{blur,sharp}/..., or PATH/{blur,sharp}/...; the two pictures of a pair have the "
    "same file name. A folder of sharp pictures alone will do as well: they are blurred by drawn "
    "camera shake"
)
_HELD_OUT = 8
_MOST_EXTENT = 11.0
_CACHED = 64


@dataclass(frozen=True, slots=True)
class _Files:
    """One scene's picture: ``blurred`` is ``None`` where the sharp one is to be shaken."""

    scene: str
    blurred: Path | None
    sharp: Path


@dataclass(frozen=True)
class BlurFolders:
    """Pictures of one of the layouts; ``first`` and ``second`` are halves of the scenes."""

    path: Path
    first: tuple[_Files, ...]
    second: tuple[_Files, ...]
    held_out: tuple[_Files, ...]
    least_side: int
    resized: bool = True

    @property
    def description(self) -> str:
        """What it is."""
        kind = "pairs" if self.first[0].blurred is not None else "sharp pictures, to be blurred"
        return f"'{self.path}': {len(self.first) + len(self.second)} {kind}"

    @property
    def identity(self) -> str:
        """Digest of the files' names and sizes."""
        digest = hashlib.sha256()
        for files in (*self.first, *self.second, *self.held_out):
            for file in (files.blurred, files.sharp):
                size = 0 if file is None else file.stat().st_size
                digest.update(f"{file and file.name} {size}\n".encode())
        return f"folders {digest.hexdigest()[:16]}"

    def blurred(self, rng: np.random.Generator) -> np.ndarray:
        """Return a blurred picture of the first half."""
        return self._read(_any_of(self.first, rng), rng)[0]

    def sharp(self, rng: np.random.Generator) -> np.ndarray:
        """Return a sharp picture of the second half."""
        return self._checked(_any_of(self.second, rng).sharp)

    def pair(self, rng: np.random.Generator) -> Pair:
        """Return a pair of either half."""
        return self._read(_any_of((*self.first, *self.second), rng), rng)

    def validation(self) -> Sequence[Pair]:
        """Return the held-out pairs."""
        return [
            self._read(files, np.random.default_rng(index))
            for index, files in enumerate(self.held_out)
        ]

    def _read(self, files: _Files, rng: np.random.Generator) -> Pair:
        sharp = self._checked(files.sharp)
        if files.blurred is None:
            return shake(sharp, shake_kernel(rng, float(rng.uniform(3.0, _MOST_EXTENT)))), sharp
        blurred = self._checked(files.blurred)
        if blurred.shape != sharp.shape:
            raise ConfigError(
                f"'{files.blurred}' is {_size(blurred)}, its sharp twin '{files.sharp}' "
                f"{_size(sharp)}",
                "both pictures of a pair must show the same pixels",
            )
        return blurred, sharp

    def _checked(self, path: Path) -> np.ndarray:
        picture = _read_cached(path)
        if min(picture.shape[:2]) < self.least_side:
            raise ConfigError(
                f"'{path}' is {_size(picture)}, training takes crops of {self.least_side} pixels",
                "remove the small pictures, or take smaller crops: --set crop=32",
            )
        return picture


def open_blur_folders(path: Path, least_side: int) -> BlurFolders:
    """Find the pictures below a folder and split them into halves by scene.

    What ``PATH/test`` holds is for validation; else every tenth scene, or picture, at least one.

    Args:
        path: a folder in one of the layouts.
        least_side: height and width that a picture must have, pixels.

    Raises:
        ConfigError: the layout is another one, a picture has no twin, or there are too few.
    """
    if not path.is_dir():
        raise ConfigError(f"--data '{path}' is not a folder", f"expected {_LAYOUT}")
    train = path / "train" if (path / "train").is_dir() else path
    found = _found(train)
    held_out: tuple[_Files, ...] = ()
    if train != path and (path / "test").is_dir():
        held_out = _spread(_found(path / "test"), _HELD_OUT)
    scenes = sorted({files.scene for files in found})
    by_scene = len(scenes) >= 3
    groups = [[f for f in found if f.scene == scene] for scene in scenes]
    if not by_scene:
        groups = [[files] for files in found]
    if not held_out:
        every = max(len(groups) // 10, 1)
        held_out = _spread([f for group in groups[:every] for f in group], _HELD_OUT)
        groups = groups[every:]
    if len(groups) < 2:
        raise ConfigError(
            f"--data '{path}' holds {len(found)} pictures of {len(scenes)} scenes: too few, since "
            "the blurred and the sharp ones are taken from different halves",
            f"expected {_LAYOUT}",
        )
    half = len(groups) // 2
    first, second = (tuple(f for g in part for f in g) for part in (groups[:half], groups[half:]))
    return BlurFolders(path, first, second, held_out, least_side)


def _found(folder: Path) -> list[_Files]:
    pairs = _pairs_in(folder, "")
    if pairs:
        return pairs
    inside = sorted(item for item in folder.iterdir() if item.is_dir())
    for scene in inside:
        pairs += _pairs_in(scene, scene.name)
    if pairs:
        return pairs
    if inside:
        names = ", ".join(item.name for item in inside[:5])
        raise ConfigError(
            f"'{folder}' has the folders {names}: none is a scene with blurred and sharp pictures",
            f"expected {_LAYOUT}",
        )
    try:
        return [_Files(file.name, None, file) for file in list_images(folder)]
    except ConfigError as error:
        raise ConfigError(error.message, f"expected {_LAYOUT}") from error


def _pairs_in(folder: Path, scene: str) -> list[_Files]:
    """Return the pairs of a folder with ``sharp`` in it; none if it is another kind of folder."""
    sharp = folder / "sharp"
    blurred = next((folder / name for name in _BLURRED if (folder / name).is_dir()), None)
    if blurred is None and not sharp.is_dir():
        return []
    if blurred is None or not sharp.is_dir():
        missing = "blur" if blurred is None else "sharp"
        raise ConfigError(f"'{folder}' has no folder '{missing}'", f"expected {_LAYOUT}")
    twins = {file.name: file for file in list_images(sharp)}
    names = [file.name for file in list_images(blurred)]
    alone = sorted(set(names) ^ set(twins))
    if alone:
        raise ConfigError(
            f"'{folder}': '{alone[0]}' is in one of {blurred.name} and sharp only "
            f"({len(alone)} such files)",
            f"expected {_LAYOUT}",
        )
    return [_Files(scene, blurred / name, twins[name]) for name in names]


def _spread(files: Sequence[_Files], count: int) -> tuple[_Files, ...]:
    """Return at most so many, evenly spread."""
    step = max(len(files) / count, 1.0)
    return tuple(files[int(index * step)] for index in range(min(count, len(files))))


def _any_of(files: Sequence[_Files], rng: np.random.Generator) -> _Files:
    return files[int(rng.integers(len(files)))]


@lru_cache(maxsize=_CACHED)
def _read_cached(path: Path) -> np.ndarray:
    return read_image(path)


def _size(picture: np.ndarray) -> str:
    return f"{picture.shape[1]}x{picture.shape[0]}"
