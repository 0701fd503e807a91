"""Drawn pictures: the same for a seed, and with the statistics that they are drawn for."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.procedural.camera_shake import GAMMA, shake, shake_kernel
from edgekit.procedural.dead_leaves import dead_leaves
from edgekit.procedural.glyphs import write_lines
from edgekit.procedural.gradients import gradient
from edgekit.procedural.scenes import draw_scene


def test_scene_follows_from_the_seed() -> None:
    scenes = [draw_scene(np.random.default_rng(seed), 64) for seed in (3, 3, 4)]
    assert scenes[0].shape == (64, 64, 3)
    assert scenes[0].dtype == np.uint8
    np.testing.assert_array_equal(scenes[0], scenes[1])
    assert (scenes[0] != scenes[2]).mean() > 0.5


def test_leaves_have_edges_at_every_scale() -> None:
    images = np.stack([dead_leaves(np.random.default_rng(i), 128).mean(-1) for i in range(4)])
    assert images.min() >= 0.0
    assert images.max() <= 1.0
    power = (np.abs(np.fft.fft2(images - images.mean())) ** 2).mean(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128)))
    bands = [(0.02, 0.04), (0.04, 0.08), (0.08, 0.16), (0.16, 0.32)]
    means = [power[(frequency >= low) & (frequency < high)].mean() for low, high in bands]
    slope = np.polyfit(np.log([1, 2, 4, 8]), np.log(means), 1)[0]
    # natural pictures: about -2; white noise 0, a smooth ramp below -4
    assert -3.2 < slope < -1.2


def test_gradient_is_smooth() -> None:
    image = gradient(np.random.default_rng(0), 64)
    steps = np.abs(np.diff(image, axis=0)).max()
    assert image.std() > 0.0
    # a blend over 64 pixels with an exponent of at least 0.5: the steepest step is the first
    assert steps <= np.ptp(image, axis=(0, 1)).max() * (1 / 63) ** 0.5 + 1e-6


def test_writing_is_dark_on_light() -> None:
    image = np.full((64, 64, 3), 0.9, np.float32)
    write_lines(image, np.random.default_rng(0))
    written = image.min(-1) < 0.5
    assert 0.005 < written.mean() < 0.5


@pytest.mark.parametrize("extent", [0.0, 3.0, 7.5, 21.0])
def test_kernel_sums_to_one_and_keeps_the_picture_in_place(extent: float) -> None:
    for seed in range(5):
        kernel = shake_kernel(np.random.default_rng(seed), extent)
        side = len(kernel)
        assert kernel.shape == (side, side)
        assert side % 2 == 1
        assert kernel.min() >= 0.0
        assert kernel.sum() == pytest.approx(1.0, abs=1e-5)  # float32 sum of some hundred values
        offsets = np.arange(side) - side // 2
        # the centroid is the centre up to float32 rounding of the shares
        assert abs((kernel.sum(1) * offsets).sum()) < 1e-4 * side
        assert abs((kernel.sum(0) * offsets).sum()) < 1e-4 * side
        used = max(np.ptp(np.nonzero(kernel.sum(axis))[0]) for axis in (0, 1))
        assert extent - 1 <= used <= extent + 2  # a point counts in the four pixels around it


def test_kernel_of_a_negative_extent() -> None:
    with pytest.raises(ValueError, match="negative"):
        shake_kernel(np.random.default_rng(0), -1.0)


def test_shake_is_a_convolution_in_linear_light() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)
    kernel = shake_kernel(rng, 5.0)
    radius = len(kernel) // 2
    light = (image / 255.0) ** GAMMA
    padded = np.pad(light, ((radius, radius), (radius, radius), (0, 0)), mode="reflect")
    expected = np.zeros_like(light)
    for down in range(len(kernel)):
        for right in range(len(kernel)):
            part = padded[down : down + 24, right : right + 20]
            expected += kernel[len(kernel) - 1 - down, len(kernel) - 1 - right] * part
    wanted = np.rint(255.0 * expected ** (1 / GAMMA))
    got = shake(image, kernel).astype(float)
    assert got.shape == image.shape
    # one code where a value lies on the border of rounding
    assert np.abs(got - wanted).max() <= 1.0
    assert (got != wanted).mean() < 0.01


def test_no_shake_changes_nothing() -> None:
    image = draw_scene(np.random.default_rng(1), 32)
    still = shake(image, shake_kernel(np.random.default_rng(0), 0.0))
    np.testing.assert_array_equal(still, image)
