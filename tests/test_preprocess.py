from __future__ import annotations

import math

import numpy as np
import pytest

from edgekit.errors import ConfigError
from edgekit.preprocess import (
    denormalize,
    fit_input,
    normalize,
    preprocess,
    preprocess_batch,
    to_pixels,
)
from edgekit.types import InputSpec, Preprocessing

needs_opencv = pytest.mark.usefixtures("opencv")


@pytest.fixture
def opencv() -> None:
    pytest.importorskip("cv2", reason="opencv is not installed")


def _image(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, channels)).astype(np.uint8)


def _raw(**steps: object) -> Preprocessing:
    """Steps without normalization, so that pixels come out as they are."""
    return Preprocessing(range=255, **steps)  # type: ignore[arg-type]


def _cubic_weights(source: int, target: int) -> np.ndarray:
    """``[target, source]`` weights: Keys 1981, a = -0.75, pixel centres, edges repeated."""
    a = -0.75
    weights = np.zeros((target, source))
    for i in range(target):
        position = (i + 0.5) * source / target - 0.5
        for j in range(math.floor(position) - 1, math.floor(position) + 3):
            d = abs(position - j)
            near = (a + 2) * d**3 - (a + 3) * d**2 + 1
            far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
            weights[i, min(max(j, 0), source - 1)] += near if d <= 1 else far if d < 2 else 0
    return weights


def test_nothing_is_done_that_is_not_asked_for() -> None:
    image = _image(5, 7)
    out = preprocess(image, _raw())
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, image.transpose(2, 0, 1))


def test_normalization_is_per_channel_after_division_by_255() -> None:
    image = _image(4, 4)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    out = preprocess(image, Preprocessing(mean=mean, std=std))
    expected = (image.astype(np.float64) / 255 - mean) / std
    # Three roundings in float32 of values up to 3.
    np.testing.assert_allclose(out, expected.transpose(2, 0, 1), rtol=0, atol=1e-6)


def test_range_255_leaves_out_the_division_and_scalars_broadcast() -> None:
    image = _image(4, 4)
    out = preprocess(image, Preprocessing(mean=(127.0,), std=(2.0,), range=255))
    np.testing.assert_array_equal(out, (image.transpose(2, 0, 1).astype(np.float32) - 127) / 2)


@pytest.mark.parametrize(("height", "width"), [(6, 8), (7, 9), (6, 9)], ids=str)
def test_the_crop_is_central(height: int, width: int) -> None:
    image = _image(height, width)
    top, left = (height - 4) // 2, (width - 4) // 2
    expected = image[top : top + 4, left : left + 4].transpose(2, 0, 1)
    np.testing.assert_array_equal(preprocess(image, _raw(crop=4)), expected)


@needs_opencv
def test_shrinking_averages_areas() -> None:
    image = _image(12, 18)
    blocks = image.astype(np.float64).reshape(4, 3, 6, 3, 3).mean(axis=(1, 3))
    out = preprocess(image, _raw(resize=4))
    assert out.shape == (3, 4, 6)
    # Pixels stay 8 bits wide: rounded to the nearest of 256 levels.
    np.testing.assert_allclose(out, blocks.transpose(2, 0, 1), rtol=0, atol=0.5 + 1e-3)


@needs_opencv
@pytest.mark.parametrize("channels", [1, 3])
def test_enlarging_is_cubic(channels: int) -> None:
    image = _image(8, 6, channels)
    rows, columns = _cubic_weights(8, 20), _cubic_weights(6, 15)
    exact = np.einsum("ih,hwc,jw->ijc", rows, image.astype(np.float64), columns)
    color = "gray" if channels == 1 else "rgb"
    out = preprocess(image, _raw(resize=15, color=color))
    # Half a level of rounding, and OpenCV's weights have 11 bits: 16 of them off by 2**-12,
    # times 255.
    tolerance = 0.5 + 16 * 255 * 2.0**-12
    expected = np.clip(exact, 0, 255).transpose(2, 0, 1)
    np.testing.assert_allclose(out, expected, rtol=0, atol=tolerance)


@needs_opencv
@pytest.mark.parametrize(
    ("size", "expected"), [((100, 50), (40, 20)), ((50, 75), (20, 30)), ((30, 33), (20, 22))]
)
def test_resize_is_about_the_short_side(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert preprocess(_image(*size), _raw(resize=20)).shape == (3, *expected)


@needs_opencv
def test_resize_comes_before_crop() -> None:
    image = _image(12, 24)
    shrunk = preprocess(image, _raw(resize=6))
    np.testing.assert_array_equal(preprocess(image, _raw(resize=6, crop=4)), shrunk[:, 1:5, 4:8])


def test_a_short_side_of_the_right_size_is_left_alone() -> None:
    image = _image(6, 9)
    np.testing.assert_array_equal(preprocess(image, _raw(resize=6)), image.transpose(2, 0, 1))


def test_bgr_reverses_the_channels_and_the_mean_follows_the_network() -> None:
    image = _image(2, 2)
    out = preprocess(image, _raw(color="bgr", mean=(1.0, 2.0, 3.0)))
    expected = image[:, :, ::-1].transpose(2, 0, 1) - np.array([1, 2, 3.0])[:, None, None]
    np.testing.assert_array_equal(out, expected)


@needs_opencv
def test_gray_is_luma() -> None:
    image = _image(4, 5)
    luma = image.astype(np.float64) @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    out = preprocess(image, _raw(color="gray"))
    assert out.shape == (1, 4, 5)
    # Rounded to 8 bits; OpenCV's weights have 14 bits or more.
    np.testing.assert_allclose(out[0], luma, rtol=0, atol=0.5 + 255 * 3 * 2.0**-15)


def test_gray_images_fill_three_channels_where_colour_is_wanted() -> None:
    image = _image(3, 4, channels=1)
    np.testing.assert_array_equal(
        preprocess(image, _raw()), np.repeat(image, 3, axis=2).transpose(2, 0, 1)
    )
    np.testing.assert_array_equal(preprocess(image, _raw(color="gray")), image.transpose(2, 0, 1))


def test_a_batch_stacks_images() -> None:
    images = [_image(4, 4, seed=seed) for seed in range(3)]
    out = preprocess_batch(images, _raw())
    np.testing.assert_array_equal(out, np.stack(images).transpose(0, 3, 1, 2))


def test_a_batch_needs_one_size() -> None:
    with pytest.raises(ConfigError, match="one size, got 4x4, 4x5"):
        preprocess_batch([_image(4, 4), _image(4, 5)], _raw())
    with pytest.raises(ConfigError, match="no image"):
        preprocess_batch([], _raw())


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8)],
    ids=["no-channels", "float", "alpha"],
)
def test_other_arrays_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="expected an image of uint8"):
        preprocess(image, _raw())


def test_a_crop_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ConfigError, match="4x6 is smaller than the crop of 5"):
        preprocess(_image(4, 6), _raw(crop=5))


def test_three_means_do_not_fit_gray() -> None:
    steps = Preprocessing(mean=(0.1, 0.2, 0.3), color="gray")
    with pytest.raises(ConfigError, match="mean has 3 values, color 'gray' has 1 channel"):
        preprocess(_image(4, 4, channels=1), steps)


# -- back to pixels -----------------------------------------------------------------------------

IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(),
        IMAGENET,
        Preprocessing((0.5,), (0.25,), color="bgr"),
        Preprocessing((104.0, 117.0, 124.0), (57.0, 58.0, 59.0), range=255, color="bgr"),
        Preprocessing((127.0,), (128.0,), range=255),
    ],
)
def test_to_pixels_is_the_inverse_of_preprocess(preprocessing: Preprocessing) -> None:
    image = _image(6, 9)
    np.testing.assert_array_equal(to_pixels(preprocess(image, preprocessing), preprocessing), image)


def test_to_pixels_of_a_gray_image_has_three_equal_channels() -> None:
    gray = Preprocessing((0.1307,), (0.3081,), color="gray")
    image = _image(6, 9, 1)
    found = to_pixels(preprocess(image, gray), gray)
    np.testing.assert_array_equal(found, image.repeat(3, 2))


def test_to_pixels_cuts_what_is_outside_the_domain() -> None:
    value = np.array([-9.0, 0.0, 0.5, 1.0, 9.0], np.float32).reshape(1, 1, 5)
    found = to_pixels(value, Preprocessing())
    assert found[0, :, 0].tolist() == [0, 0, 128, 255, 255]  # 127.5 rounds to even


def test_to_pixels_spreads_unknown_values_over_the_range() -> None:
    value = np.array([-3.0, -1.0, 1.0], np.float32).reshape(1, 1, 3)
    assert to_pixels(value, None)[0, :, 0].tolist() == [0, 128, 255]
    assert to_pixels(np.full((3, 2, 2), 7.0, np.float32), None).max() == 0  # nothing to spread


@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
@pytest.mark.parametrize("scale", [1, 255])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_denormalize_undoes_normalize(color: str, scale: int, dtype: str) -> None:
    gray = color == "gray"
    mean, std = ((0.4,), (0.3,)) if gray else ((0.1, 0.4, 0.7), (0.2, 0.3, 0.4))
    steps = Preprocessing(
        tuple(scale * m for m in mean), tuple(scale * s for s in std), range=scale, color=color
    )
    rng = np.random.default_rng(0)
    image = rng.integers(0, np.iinfo(dtype).max + 1, (5, 4, 1 if gray else 3)).astype(dtype)
    back = denormalize(normalize(image, steps), steps, dtype)
    assert back.dtype == image.dtype
    # A level of 16 bits is 1.5e-5 of the range; float32 keeps 6e-8 in each of four operations.
    np.testing.assert_array_equal(back, image)


def test_16_bits_are_8_bits_with_more_levels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    steps = Preprocessing((0.5,), (0.5,))
    wide = normalize(image.astype(np.uint16) * 257, steps)
    np.testing.assert_allclose(wide, normalize(image, steps), atol=1e-6)


def test_input_grows_to_its_multiple() -> None:
    images = np.random.default_rng(0).random((2, 3, 5, 8)).astype(np.float32)
    spec = InputSpec("image", (1, 3, 8, 8), variable_axes=(2, 3), multiple=4)
    expected = np.pad(images, ((0, 0), (0, 0), (0, 3), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(fit_input(images, spec), expected)
    with pytest.raises(ConfigError, match="preprocessing made"):
        fit_input(images, InputSpec("image", (1, 3, 8, 8)))
    pixels = fit_input(255 * images, InputSpec("image", (1, 3, 5, 8), "uint8"))
    np.testing.assert_array_equal(pixels, np.rint(255 * images))
