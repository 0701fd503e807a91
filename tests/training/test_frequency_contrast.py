"""The contrast of frequencies against its formula in NumPy, and where its gradient goes."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgekit.training.frequency_contrast import (  # noqa: E402
    frequency_descriptor,
    info_nce,
    similarity,
)
from edgekit.training.negatives import NegativesBuffer  # noqa: E402


def reference(images: np.ndarray, steepness: float | None) -> np.ndarray:
    _, _, height, width = images.shape
    grey = 0.299 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2]
    size = np.abs(np.fft.fft2(grey)) * 256 / np.sqrt(height * width)
    with np.errstate(divide="ignore"):
        level = np.log(size)
    if steepness is None:
        full = (20 * level > 0).astype(float)
    else:
        full = 1 / (1 + np.exp(-steepness * np.log(size + 1e-8)))
    empty = (1 - full)[:, height // 4 : 3 * height // 4, width // 4 : 3 * width // 4]
    quarters = [
        empty[:, i * height // 4 : (i + 1) * height // 4, j * width // 4 : (j + 1) * width // 4]
        for i in (0, 1)
        for j in (0, 1)
    ]
    return np.stack([quarter.mean((1, 2)) for quarter in quarters], 1)


def pictures(side: int, amplitude: float = 0.02) -> np.ndarray:
    """Smooth ramps under a little noise, so that high frequencies lie around the threshold."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0.2, 0.8, side)
    noise = (
        rng.normal(size=(3, 3, side, side))
        * amplitude
        * np.array([0.1, 0.3, 1])[:, None, None, None]
    )
    return np.clip(ramp[None, None, None] + noise, 0, 1).astype(np.float32)


@pytest.mark.parametrize("side", [32, 64, 256])
@pytest.mark.parametrize("steepness", [None, 6.0])
def test_descriptor_is_the_papers(side: int, steepness: float | None) -> None:
    images = pictures(side)
    got = frequency_descriptor(torch.from_numpy(images), steepness).numpy()
    expected = reference(images.astype(np.float64), steepness)
    assert 0.02 < expected.mean() < 0.98
    # float32 spectra: of the hard form, a frequency on the threshold may fall on either side
    np.testing.assert_allclose(got, expected, atol=2e-5 if steepness else 2.5 / (side // 4) ** 2)


def test_blur_empties_high_frequencies() -> None:
    sharp = torch.from_numpy(pictures(64, 0.1))
    blurred = torch.nn.functional.avg_pool2d(sharp, 3, 1, 1, count_include_pad=False)
    assert (frequency_descriptor(blurred) > frequency_descriptor(sharp)).all()


def test_info_nce_is_cross_entropy_over_similarities() -> None:
    rng = np.random.default_rng(0)
    anchor, positive = rng.uniform(size=(2, 5, 4))
    negatives = rng.uniform(size=(5, 8, 4))

    def alike(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return 1 - ((first - second) ** 2).mean(-1)

    own = np.exp(alike(anchor, positive) / 0.07)
    others = np.exp(alike(anchor[:, None], negatives) / 0.07).sum(1)
    expected = -np.log(own / (own + others)).mean()
    got = info_nce(*map(torch.from_numpy, (anchor, positive, negatives)))
    assert float(got) == pytest.approx(expected, rel=1e-12)
    same = torch.from_numpy(anchor)
    assert similarity(same, same).tolist() == [1.0] * 5


def test_soft_form_has_a_gradient_and_the_released_one_has_none() -> None:
    images = torch.from_numpy(pictures(32)).requires_grad_()
    target, negatives = torch.rand(3, 4), torch.rand(3, 8, 4)
    info_nce(frequency_descriptor(images), target, negatives).backward()
    assert images.grad is not None
    assert torch.isfinite(images.grad).all()
    assert float(images.grad.abs().max()) > 0
    assert not info_nce(frequency_descriptor(images, None), target, negatives).requires_grad


def test_gradient_of_an_empty_spectrum_is_finite() -> None:
    images = torch.full((1, 3, 32, 32), 0.5, requires_grad=True)
    frequency_descriptor(images).sum().backward()
    assert images.grad is not None
    assert torch.isfinite(images.grad).all()


def test_buffer_draws_different_places_and_replaces_half() -> None:
    buffer = NegativesBuffer(torch.arange(64.0)[:, None].expand(64, 4))
    rng = np.random.default_rng(0)
    drawn = buffer.draw(4, 8, rng)
    assert drawn.shape == (4, 8, 4)
    assert len(drawn[..., 0].unique()) == 32
    for _ in range(8):
        buffer.replace(torch.full((4, 4), -1.0), rng)
    # 32 pictures came by, each with probability one half; two may take the same place
    assert 8 <= int((buffer.descriptors[:, 0] == -1).sum()) <= 24
