"""From a decoded image to a network input, as :class:`edgekit.types.Preprocessing` says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekit.errors import ConfigError, require
from edgekit.types import Preprocessing


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
    return _normalize(_to_color(image, preprocessing.color), preprocessing)


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


def _normalize(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
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
    if preprocessing.range == 1:
        pixels /= np.float32(255.0)
    normalized: np.ndarray = (pixels - mean) / std
    return normalized


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
