"""Image-to-image networks on pictures of any size."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgekit.errors import ConfigError, UnsupportedError, VerificationError, require
from edgekit.preprocess import as_dtype, denormalize, levels, normalize
from edgekit.run.artifact import OpenArtifact, check_image_input
from edgekit.run.pictures import Picture
from edgekit.run.tiles import (
    DEFAULT_TILE,
    Frame,
    Span,
    cut,
    largest_margin,
    probe_size,
    reach,
    spans,
)
from edgekit.types import Preprocessing

_STEP = 8  # margins are rounded up to it
_COUNTED = 1_000_000
_LEVELS_OF_8_BITS = 256


@dataclass(frozen=True, slots=True)
class Restored:
    """What a network made of one picture.

    Attributes:
        picture: of the size of the original, or a whole multiple of it.
        seconds: that the network took.
        tiles: number of its runs.
        notes: what must be known about the picture.
    """

    picture: Picture
    seconds: float
    tiles: int
    notes: tuple[str, ...]


class Restorer:
    """Runs an image-to-image artifact on pictures; ``resize`` and ``crop`` are not applied.

    Args:
        artifact: open; its first output is a picture, normalized as the input is.
        tile: side of a tile; pictures of more than ``tile * tile`` pixels run in tiles.

    Raises:
        ConfigError: the tile is smaller than what the network takes.
        UnsupportedError: the network does not take one image.
    """

    def __init__(self, artifact: OpenArtifact, tile: int = DEFAULT_TILE) -> None:
        check_image_input(artifact.manifest)
        assert artifact.manifest.preprocessing is not None
        self._artifact = artifact
        self._spec = artifact.manifest.inputs[0]
        self._preprocessing: Preprocessing = artifact.manifest.preprocessing
        self._tile = tile
        fixed = _fixed(artifact)
        self._frame = Frame(self._spec.multiple) if fixed is None else Frame.of_size(*fixed)
        self._reach: dict[tuple[int, int], int | None] = {}
        if tile < 8 * self._spec.multiple:
            raise ConfigError(
                f"--tile {tile} is too small for this network",
                f"nearest possible: --tile {8 * self._spec.multiple}",
            )

    def restore(
        self, picture: Picture, progress: Callable[[float], None] = lambda _part: None
    ) -> Restored:
        """Restore one picture.

        Raises:
            VerificationError: the network puts out no picture, or numbers that are not finite.
        """
        height, width = picture.size
        frame = self._frame
        tile = frame.tile(height, width, self._tile)
        margin, notes = (0, ()) if tile is None else self._margin(tile)
        sides = (None, None) if tile is None else tile
        rows, columns = (
            spans(size, frame.padded(size, axis), sides[axis], margin, frame.multiple)
            for axis, size in enumerate((height, width))
        )
        canvas = _Canvas(picture, self._preprocessing)
        seconds, done = 0.0, 0
        for row in rows:
            for column in columns:
                value = self._input(cut(picture.colour, row, column))
                began = time.perf_counter()
                output = self._artifact.first_output(value)
                seconds += time.perf_counter() - began
                canvas.put(self._checked(output, value), row, column)
                done += 1
                progress(done / (len(rows) * len(columns)))
        made, more = canvas.picture()
        return Restored(made, seconds, done, (*notes, *more))

    def _margin(self, tile: tuple[int, int]) -> tuple[int, tuple[str, ...]]:
        """Return the pixels at the inner edges of tiles that do not count, and what that means."""
        most = largest_margin(min(tile), self._frame.multiple)
        if tile not in self._reach:
            self._reach[tile] = reach(self._steps, probe_size(tile, self._frame), self._channels)
        seen = self._reach[tile]
        if seen is not None and seen <= most:
            return min(-(-seen // _STEP) * _STEP, most), ()
        distance = "farther than was measured" if seen is None else f"{seen} pixels far"
        return most, (
            f"the network looks {distance}, a tile shows it {most} around its core: tiles may "
            "differ from the picture as a whole (--tile)",
        )

    @property
    def _channels(self) -> int:
        return 1 if self._preprocessing.color == "gray" else 3

    def _steps(self, pixels: np.ndarray) -> np.ndarray:
        value = self._input(pixels)
        output = self._checked(self._artifact.first_output(value), value)
        return levels(output, self._preprocessing)

    def _input(self, pixels: np.ndarray) -> np.ndarray:
        return as_dtype(normalize(pixels, self._preprocessing)[None], self._spec)

    def _checked(self, output: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Return the picture ``[C, H * scale, W * scale]`` in an output."""
        name = self._artifact.manifest.outputs[0].name
        height, width = value.shape[2:]
        scales = [got / side for got, side in zip(output.shape[2:], (height, width), strict=False)]
        if (
            output.ndim != 4
            or output.shape[0] != 1
            or output.shape[1] not in (1, 3)
            or scales[0] != scales[1]
            or scales[0] != int(scales[0])
        ):
            raise VerificationError(
                f"output '{name}' is {list(output.shape)}, which is no picture of "
                f"{height}x{width} pixels",
                "give inputs as .npz files, and read the outputs from what is written",
            )
        if not np.isfinite(output).all():
            raise VerificationError(
                f"target '{self._artifact.name}' put out numbers that are not finite",
                "choose another one with --target",
            )
        made: np.ndarray = output[0]
        return made


def _fixed(artifact: OpenArtifact) -> tuple[int, int] | None:
    height, width = artifact.fixed_sizes()[2:]
    if height is None and width is None:
        return None
    if height is None or width is None:
        raise UnsupportedError(
            f"target '{artifact.name}' fixes one of height and width",
            "quantize again with both variable, as in --input 1x3x256~x256~",
        )
    return height, width


class _Canvas:
    """Where the cores of tiles are put together, in the original's depth."""

    def __init__(self, original: Picture, preprocessing: Preprocessing) -> None:
        self._original = original
        self._preprocessing = preprocessing
        self._pixels: np.ndarray | None = None

    def put(self, output: np.ndarray, row: Span, column: Span) -> None:
        """Take the core of a tile ``[C, H * scale, W * scale]``."""
        height, width = self._original.size
        dtype = self._original.colour.dtype
        scale = output.shape[1] // (row.stop - row.start)
        if self._pixels is None:
            shape = (height * scale, width * scale, output.shape[0])
            self._pixels = np.empty(shape, dtype)
        inner = [
            slice((span.first - span.start) * scale, (span.last - span.start) * scale)
            for span in (row, column)
        ]
        place = tuple(slice(span.first * scale, span.last * scale) for span in (row, column))
        core = output[:, inner[0], inner[1]]
        self._pixels[place] = denormalize(core, self._preprocessing, str(dtype))

    def picture(self) -> tuple[Picture, tuple[str, ...]]:
        """Return the whole: gray where the original is, its transparency as it was."""
        assert self._pixels is not None
        colour, alpha = self._pixels, self._original.alpha
        notes: tuple[str, ...] = ()
        if self._original.colour.shape[2] == 1 and colour.shape[2] == 3:
            cv2 = require("cv2", extra="images")
            colour = cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY)[:, :, None]
        if alpha is not None and alpha.shape != colour.shape[:2]:
            cv2 = require("cv2", extra="images")
            alpha = cv2.resize(alpha, (colour.shape[1], colour.shape[0]))
        if colour.dtype == np.uint16 and _few_levels(colour):
            notes = ("written with 8 bits: the network puts out no more than 256 levels",)
            colour = _narrowed(colour)
            alpha = None if alpha is None else _narrowed(alpha)
        return Picture(colour, alpha), notes


def _few_levels(colour: np.ndarray) -> bool:
    stride = max(colour.size // _COUNTED, 1)
    return len(np.unique(colour.ravel()[::stride])) <= _LEVELS_OF_8_BITS


def _narrowed(wide: np.ndarray) -> np.ndarray:
    return np.rint(wide / 257.0).astype(np.uint8)
