"""Between decoded images and network inputs, as :class:`edgekit.types.Preprocessing` says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekit.errors import ConfigError, require
from edgekit.types import InputSpec, Preprocessing

_WIDE = 257.0  # 65535 / 255


def preprocess(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Resize, crop, convert and normalize one image.

    Pixels stay 8 bits wide until they are normalized. The crop is taken at the rounded-down
    centre.

    Args:
        image: ``[H, W, 3]`` RGB or ``[H, W, 1]`` gray, uint8.
        preprocessing: the steps; ``None`` in a field means that the step is not done.

    Returns:
        ``[C, H, W]`` float32; C is 1 for ``color="gray"`` and else 3.

    Raises:
        ConfigError: the image is not of that form, or smaller than the crop.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ConfigError(
            f"preprocessing: expected an image of uint8 [H, W, 3] or [H, W, 1], "
            f"got {image.dtype} {list(image.shape)}"
        )
    if preprocessing.resize is not None:
        image = _resize_short_side(image, preprocessing.resize)
    if preprocessing.crop is not None:
        image = _central_crop(image, preprocessing.crop)
    return normalize(image, preprocessing)


def preprocess_batch(images: Sequence[np.ndarray], preprocessing: Preprocessing) -> np.ndarray:
    """Preprocess images into one ``[N, C, H, W]`` float32 array.

    Raises:
        ConfigError: there is no image, or the results differ in height or width.
    """
    arrays = [preprocess(image, preprocessing) for image in images]
    sizes = sorted({array.shape[1:] for array in arrays})
    if len(sizes) != 1:
        found = ", ".join(f"{height}x{width}" for height, width in sizes) or "no image"
        raise ConfigError(
            f"preprocessing: a batch needs images of one size, got {found}",
            "set crop= in the preprocessing, or use images of one size",
        )
    return np.stack(arrays)


def _resize_short_side(image: np.ndarray, size: int) -> np.ndarray:
    height, width = image.shape[:2]
    short = min(height, width)
    if short == size:
        return image
    cv2 = require("cv2", extra="images")
    # Area averaging sees every pixel when shrinking; it would only repeat pixels when enlarging.
    interpolation = cv2.INTER_AREA if size < short else cv2.INTER_CUBIC
    target = (round(width * size / short), round(height * size / short))
    resized: np.ndarray = cv2.resize(image, target, interpolation=interpolation)
    return resized.reshape(target[1], target[0], image.shape[2])  # cv2 drops a single channel


def _central_crop(image: np.ndarray, size: int) -> np.ndarray:
    height, width = image.shape[:2]
    if height < size or width < size:
        raise ConfigError(
            f"preprocessing: an image of {height}x{width} is smaller than the crop of {size}",
            f"set resize={size} or more in the preprocessing",
        )
    top, left = (height - size) // 2, (width - size) // 2
    return image[top : top + size, left : left + size]


def _to_color(image: np.ndarray, color: str) -> np.ndarray:
    if color == "gray":
        if image.shape[2] == 1:
            return image
        cv2 = require("cv2", extra="images")
        gray: np.ndarray = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
        return gray[:, :, None]
    if image.shape[2] == 1:
        image = np.repeat(image, 3, axis=2)
    return image[:, :, ::-1] if color == "bgr" else image


def normalize(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Convert colours and normalize; height and width stay as they are.

    Args:
        image: ``[H, W, 3]`` RGB or ``[H, W, 1]`` gray, uint8, or uint16 with white at 65535.
        preprocessing: of it only ``color``, ``range``, ``mean`` and ``std`` count.

    Returns:
        ``[C, H, W]`` float32; C is 1 for ``color="gray"`` and else 3.

    Raises:
        ConfigError: ``mean`` or ``std`` do not fit the channels.
    """
    image = _to_color(image, preprocessing.color)
    channels = image.shape[2]
    for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
        if len(values) not in (1, channels):
            raise ConfigError(
                f"preprocessing: {name} has {len(values)} values, color "
                f"'{preprocessing.color}' has {channels} channel(s)"
            )
    mean = np.asarray(preprocessing.mean, dtype=np.float32).reshape(-1, 1, 1)
    std = np.asarray(preprocessing.std, dtype=np.float32).reshape(-1, 1, 1)
    pixels = np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32)
    if image.dtype == np.uint16:
        pixels /= np.float32(_WIDE)
    if preprocessing.range == 1:
        pixels /= np.float32(255.0)
    normalized: np.ndarray = (pixels - mean) / std
    return normalized


def denormalize(value: np.ndarray, preprocessing: Preprocessing, dtype: str) -> np.ndarray:
    """Turn a picture that a network puts out into pixels: the inverse of :func:`normalize`.

    Args:
        value: ``[C, H, W]`` with one or three channels, normalized as the input was.
        preprocessing: what the network's input went through.
        dtype: ``uint8`` or ``uint16``.

    Returns:
        ``[H, W, C]``, RGB where C is 3; values outside of the range are clipped.
    """
    white = 65535 if dtype == "uint16" else 255
    pixels = levels(value, preprocessing, white)
    image = np.clip(np.rint(pixels), 0, white).astype(dtype).transpose(1, 2, 0)
    reverse = preprocessing.color == "bgr" and image.shape[2] == 3
    return np.ascontiguousarray(image[:, :, ::-1] if reverse else image)


def levels(value: np.ndarray, preprocessing: Preprocessing, white: float = 255.0) -> np.ndarray:
    """Undo the normalization of ``[C, H, W]``: float32 in which white stands at ``white``."""
    mean = np.asarray(preprocessing.mean, dtype=np.float32).reshape(-1, 1, 1)
    std = np.asarray(preprocessing.std, dtype=np.float32).reshape(-1, 1, 1)
    pixels: np.ndarray = value.astype(np.float32) * std + mean
    pixels *= np.float32(white if preprocessing.range == 1 else white / 255)
    return pixels


def mirrored(start: int, stop: int, size: int) -> np.ndarray:
    """Return which of ``size`` pixels stand at ``start`` to ``stop`` when the row goes on mirrored.

    The last pixel is the mirror and not repeated; a long row of a short picture swings to and fro.
    """
    if size == 1:
        return np.zeros(stop - start, dtype=np.int64)
    at = np.arange(start, stop) % (2 * size - 2)
    return np.where(at < size, at, 2 * size - 2 - at)


def fit_input(images: np.ndarray, spec: InputSpec) -> np.ndarray:
    """Bring preprocessed images to the sizes and the type that an input takes.

    Variable axes grow to the input's multiple by mirroring at the right and at the bottom.

    Args:
        images: ``[N, C, H, W]`` float32.
        spec: an input of four axes.

    Raises:
        ConfigError: an axis of fixed size has another one.
    """
    for axis in spec.variable_axes:
        size = images.shape[axis]
        if size % spec.multiple:
            wanted = -(-size // spec.multiple) * spec.multiple
            images = images.take(mirrored(0, wanted, size), axis)
    fixed = [axis for axis in (1, 2, 3) if axis not in spec.variable_axes]
    if any(images.shape[axis] != spec.shape[axis] for axis in fixed):
        raise ConfigError(
            f"input '{spec.name}' takes images of {list(spec.shape[1:])}, "
            f"preprocessing made {list(images.shape[1:])}",
            "use images of that size, or set resize= and crop= in the preprocessing",
        )
    return as_dtype(images, spec)


def as_dtype(images: np.ndarray, spec: InputSpec) -> np.ndarray:
    """Return float images in the type of an input, rounded where that is of integers."""
    if np.issubdtype(np.dtype(spec.dtype), np.integer):
        images = np.rint(images)
    return images.astype(spec.dtype)


def to_pixels(value: np.ndarray, preprocessing: Preprocessing | None) -> np.ndarray:
    """Turn a network input back into an image that can be looked at.

    Args:
        value: ``[C, H, W]`` with one or three channels.
        preprocessing: what made such inputs; if ``None``, the values found are spread over 0..255.

    Returns:
        ``[H, W, 3]`` uint8 RGB.
    """
    pixels = value.astype(np.float32)
    if preprocessing is None:
        low, high = float(pixels.min()), float(pixels.max())
        pixels = (pixels - low) * (255.0 / max(high - low, 1e-12))
    else:
        mean = np.asarray(preprocessing.mean, dtype=np.float32).reshape(-1, 1, 1)
        std = np.asarray(preprocessing.std, dtype=np.float32).reshape(-1, 1, 1)
        pixels = (pixels * std + mean) * (255.0 if preprocessing.range == 1 else 1.0)
    image = np.clip(np.rint(pixels), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    if image.shape[2] == 1:
        return np.repeat(image, 3, axis=2)
    reverse = preprocessing is not None and preprocessing.color == "bgr"
    return np.ascontiguousarray(image[:, :, ::-1] if reverse else image)
