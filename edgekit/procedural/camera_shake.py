"""Camera shake: the path of a hand-held camera during an exposure, as a blur kernel.

The path is a random walk with inertia, as in Boracchi and Foi (2012): the velocity keeps its
direction for a while, is pulled back to where the photographer aims, and jerks now and then. The
share of the exposure that is spent at each pixel is the kernel. Light adds up in the sensor before
the camera applies its tone curve, so a picture is blurred in linear light: the GoPro set, whose
``blur_gamma`` pictures are averages of frames under a curve of 2.2, is made in the same way.
"""

from __future__ import annotations

import math

import numpy as np

GAMMA = 2.2
_STEPS = 256  # points of the path: several for each pixel of the longest


def shake_kernel(rng: np.random.Generator, extent: float) -> np.ndarray:
    """Draw a kernel ``[K, K]``, float32, K odd, which sums to one and whose mean is its centre.

    Args:
        rng: source of everything random.
        extent: the larger side of the path's bounding box, pixels; 0 gives a single one.

    Raises:
        ValueError: ``extent`` is negative.
    """
    if not extent >= 0:
        raise ValueError(f"extent {extent} must not be negative")
    path = _path(rng)
    spread = np.ptp(path, axis=0).max()
    path = (path - path.mean(0)) * (extent / spread)
    radius = math.ceil(np.abs(path).max()) + 1 if extent > 0 else 0
    kernel = np.zeros((2 * radius + 1, 2 * radius + 1))
    if radius == 0:
        kernel[0, 0] = 1.0
        return kernel.astype(np.float32)
    base = np.floor(path).astype(int)
    inside = path - base
    for down in (0, 1):
        for right in (0, 1):  # each point counts in the four pixels around it
            share = np.abs(1 - down - inside[:, 0]) * np.abs(1 - right - inside[:, 1])
            np.add.at(kernel, (base[:, 0] + down + radius, base[:, 1] + right + radius), share)
    shares: np.ndarray = (kernel / kernel.sum()).astype(np.float32)
    return shares


def _path(rng: np.random.Generator) -> np.ndarray:
    """Return ``[_STEPS, 2]`` positions of a random walk with inertia, of any size."""
    inertia = 1.0 - 0.3 * rng.uniform() ** 2
    pull = 0.002 * rng.uniform()
    jerk = 0.01 * rng.uniform()
    direction = rng.uniform(0.0, 2.0 * math.pi)
    velocity = np.array([math.sin(direction), math.cos(direction)])
    place = np.zeros(2)
    path = np.empty((_STEPS, 2))
    for step in range(_STEPS):
        path[step] = place
        if rng.uniform() < jerk:  # the hand corrects itself: about backwards, and twice as fast
            velocity = -2.0 * velocity + rng.normal(0.0, 1.0, 2)
        velocity = inertia * velocity + 0.06 * rng.normal(0.0, 1.0, 2) - pull * place
        velocity /= max(float(np.linalg.norm(velocity)), 1e-9)
        place = place + velocity
    return path


def shake(image: np.ndarray, kernel: np.ndarray, gamma: float = GAMMA) -> np.ndarray:
    """Blur a picture in linear light; borders continue as mirror images.

    Args:
        image: ``[H, W, 3]`` uint8, each side longer than half of the kernel's.
        kernel: ``[K, K]``, K odd, of sum one.
        gamma: exponent from pixel values to light.

    Returns:
        The blurred picture, same shape and type.
    """
    radius = len(kernel) // 2
    light = (image.astype(np.float64) / 255.0) ** gamma
    padded = np.pad(light, ((radius, radius), (radius, radius), (0, 0)), mode="reflect")
    shape = padded.shape[:2]
    transfer = np.fft.rfft2(kernel.astype(np.float64), shape)
    spectrum = np.fft.rfft2(padded, axes=(0, 1))
    full = np.fft.irfft2(spectrum * transfer[..., None], shape, axes=(0, 1))
    blurred = full[2 * radius :, 2 * radius :]  # of a circular product, the part that did not wrap
    value = np.clip(blurred, 0.0, 1.0) ** (1.0 / gamma)
    pixels: np.ndarray = np.rint(255.0 * value).astype(np.uint8)
    return pixels
