"""What a restoring network gains on blurred photographs, and what quantization costs it.

    python -m benchmarks.restoration --photographs FOLDER paired=p0.pt,p1.pt unpaired=u0.pt
    python -m benchmarks.restoration --photographs FOLDER --size 250x331 \\
        float=p0.pt int8=p0-w8a8:onnxruntime,p0-w8a8:openvino

A row is a name with checkpoints, or artifacts as ``DIRECTORY:TARGET``. Photographs are cut to a
size and blurred by drawn camera shake, the same for every row; sizes that a network does not take
are padded by reflection and cut back. PSNR is that of 8-bit pictures, truncated, for each of them
and then averaged, as in FCL-GAN's protocol; intervals are over photographs.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks._fidelity import Interval, paired_interval
from benchmarks._record import Recording
from benchmarks._sources import Source, parse_rows
from edgekit.datasets import list_images, read_image
from edgekit.errors import ConfigError, EdgekitError
from edgekit.procedural.camera_shake import shake, shake_kernel

_SCHEMA = 1
_USER_ERROR = 2
_MULTIPLE = 4  # of height and width: two halvings
_LEAST_EXTENT, _MOST_EXTENT = 3.0, 11.0  # of a path, pixels
_PEAK = 255.0


@dataclass(frozen=True)
class Row:
    """One name: checkpoints or artifacts of several seeds or targets.

    Attributes:
        psnr: of restored pictures, dB, for each source.
        gain: over the blurred pictures, dB, averaged over sources.
        to_float: PSNR between an artifact's pictures and its float network's, dB, for each source;
            the mean over photographs. Empty for checkpoints.
        least_to_float: of the photograph where it is worst.
    """

    name: str
    psnr: tuple[float, ...]
    gain: Interval
    to_float: tuple[float, ...]
    least_to_float: float | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the rows; 0 when it is done, 2 when it cannot run."""
    options = _parse(arguments)
    recording = Recording()
    try:
        blurred, rows = _measure(options)
    except EdgekitError as error:
        print(f"{error.message}\n{error.hint}", file=sys.stderr)
        return _USER_ERROR
    print(f"blurred: {blurred:.2f} dB")
    for row in rows:
        print(_line(row))
    content = {
        "options": {k: v if not isinstance(v, Path) else str(v) for k, v in vars(options).items()},
        "blurred_psnr": blurred,
        "rows": [asdict(row) for row in rows],
    }
    recording.save(options.json, _SCHEMA, content)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.restoration", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("rows", nargs="+", metavar="NAME=SOURCE[,SOURCE]", help="checkpoints or DIRECTORY:TARGET")
    add("--photographs", type=Path, required=True, metavar="FOLDER", help="sharp pictures")
    add("--count", type=int, default=100, help="photographs, spread evenly (default 100)")
    add(
        "--size",
        type=_size,
        default=(256, 256),
        metavar="HxW",
        help="what is cut from the middle of each",
    )
    add("--seed", type=int, default=0, help="of the camera shake")
    add("--json", type=Path, metavar="FILE", help="write everything that was measured")
    return parser.parse_args(arguments)


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(height), int(width)


def _measure(options: argparse.Namespace) -> tuple[float, list[Row]]:
    named = parse_rows(options.rows)
    height, width = options.size
    pairs = list(_pairs(options.photographs, options.count, (height, width), options.seed))
    if not pairs:
        raise ConfigError(
            f"'{options.photographs}' holds no picture of {height}x{width} pixels or more",
            "give a smaller --size",
        )
    blurred = np.array([psnr(blur, sharp) for blur, sharp in pairs])
    rows = []
    for name, sources in named.items():
        restored = [_restored(source, [blur for blur, _ in pairs]) for source in sources]
        each = np.array(
            [
                [psnr(_eight_bits(y), sharp) for y, (_, sharp) in zip(ys, pairs, strict=True)]
                for ys in restored
            ]
        )
        closeness = [
            np.array([psnr(_PEAK * y, _PEAK * x) for y, x in zip(ys, wanted, strict=True)])
            for ys, source in zip(restored, sources, strict=True)
            if (reference := source.reference()) is not None
            for wanted in [_restored(reference, [blur for blur, _ in pairs])]
        ]
        rows.append(
            Row(
                name,
                tuple(float(value) for value in each.mean(1)),
                paired_interval(each.mean(0), blurred),
                tuple(float(value.mean()) for value in closeness),
                float(min(value.min() for value in closeness)) if closeness else None,
            )
        )
    return float(blurred.mean()), rows


def _pairs(
    folder: Path, count: int, size: tuple[int, int], seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield blurred and sharp pictures, ``[H, W, 3]`` uint8."""
    files = list_images(folder)
    chosen = np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int)
    for number in chosen:
        image = read_image(files[number])
        top, left = ((have - want) // 2 for have, want in zip(image.shape, size, strict=False))
        if min(top, left) < 0:
            continue
        sharp = np.ascontiguousarray(image[top : top + size[0], left : left + size[1]])
        sharp = np.broadcast_to(sharp, (*size, 3)).copy()
        rng = np.random.default_rng([seed, int(number)])
        kernel = shake_kernel(rng, float(rng.uniform(_LEAST_EXTENT, _MOST_EXTENT)))
        yield shake(sharp, kernel), sharp


def _restored(source: Source, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return restored pictures, ``[3, H, W]`` float32 in [0, 1]."""
    height, width = pictures[0].shape[:2]
    more = (0, 0), (0, -height % _MULTIPLE), (0, -width % _MULTIPLE)
    batches = (
        np.pad(picture.transpose(2, 0, 1).astype(np.float32) / _PEAK, more, mode="reflect")[None]
        for picture in pictures
    )
    return [value[0, :, :height, :width] for value in source.outputs(batches)]


def _eight_bits(restored: np.ndarray) -> np.ndarray:
    value: np.ndarray = np.floor(_PEAK * restored).transpose(1, 2, 0)
    return value


def psnr(picture: np.ndarray, wanted: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of values from 0 to 255, dB."""
    error = float(np.mean((picture.astype(np.float64) - wanted.astype(np.float64)) ** 2))
    return 10 * math.log10(_PEAK**2 / max(error, 1e-12))


def _line(row: Row) -> str:
    gain = row.gain
    text = f"{row.name}: " + ", ".join(f"{value:.2f}" for value in row.psnr) + " dB"
    text += f"; gain {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
    if row.to_float:
        each = ", ".join(f"{value:.1f}" for value in row.to_float)
        text += f"; against float {each} dB, worst photograph {row.least_to_float:.1f}"
    return text


if __name__ == "__main__":
    sys.exit(main())
