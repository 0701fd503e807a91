"""Random inputs: spectrum, spread, domains and repeatability."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit.capture import CapturedModel, capture
from edgekit.signals import (
    input_domain,
    patterns,
    random_batches,
    structured_noise,
    white_noise,
)
from edgekit.types import InputSpec, Preprocessing

IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
Draw = Callable[[tuple[int, ...], torch.Generator], Tensor]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def octave_powers(x: Tensor) -> list[float]:
    """Mean power of a spatial frequency in each octave, from coarse to fine."""
    spectrum = np.abs(np.fft.fft2(x.numpy(), axes=(-2, -1))) ** 2
    size = x.shape[-1]
    axis = np.abs(np.fft.fftfreq(size) * size)
    radius = np.hypot(axis[:, None], axis[None, :])
    edges = [1, 2, 4, 8, 16, 32]
    return [
        float(spectrum[..., (radius >= low) & (radius < high)].mean())
        for low, high in pairwise(edges)
    ]


def test_power_falls_with_frequency_as_in_natural_images() -> None:
    powers = octave_powers(structured_noise((16, 3, 64, 64), generator()))
    ratios = [fine / coarse for coarse, fine in pairwise(powers)]
    assert all(ratio < 0.8 for ratio in ratios)
    # amplitude 1/f to 1/f**2 is a power that falls by 4 to 16 with each octave, over four of them
    assert 16.0**-4 < powers[-1] / powers[0] < 2.0**-4
    flat = octave_powers(white_noise((16, 3, 64, 64), generator()))
    assert max(flat) / min(flat) < 1.3  # what the spectrum of the control looks like


@pytest.mark.parametrize("shape", [(8, 3, 32, 32), (4, 2, 224, 224), (16, 4, 64), (2, 3, 9, 40)])
def test_structured_noise_has_zero_mean_and_unit_spread(shape: tuple[int, ...]) -> None:
    x = structured_noise(shape, generator())
    assert x.shape == shape
    assert float(x.mean()) == pytest.approx(0.0, abs=1e-5)  # it is normalised; float32 sums
    assert float(x.std()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("shape", [(64, 8), (4, 3, 5, 5), (4, 6, 7), (2, 3, 8, 8, 8)])
def test_shapes_without_space_get_white_noise(shape: tuple[int, ...]) -> None:
    assert torch.equal(
        structured_noise(shape, generator()), torch.randn(shape, generator=generator())
    )


@pytest.mark.parametrize("shape", [(8, 3, 32, 32), (8, 4, 64), (8, 10), (7, 3, 5, 40)])
def test_patterns_are_spread_about_one(shape: tuple[int, ...]) -> None:
    x = patterns(shape, generator())
    assert x.shape == shape
    assert bool(x.isfinite().all())
    assert abs(float(x.mean())) < 0.5
    assert 0.5 < float(x.std()) < 1.5


@pytest.mark.parametrize("draw", [structured_noise, white_noise, patterns])
def test_seed_decides(draw: Draw) -> None:
    shape = (4, 3, 16, 16)
    assert torch.equal(draw(shape, generator(5)), draw(shape, generator(5)))
    assert not torch.equal(draw(shape, generator(5)), draw(shape, generator(6)))


@pytest.mark.parametrize(
    ("preprocessing", "domain"),
    [
        (None, None),
        (Preprocessing((0.5,), (0.5,)), (-1.0, 1.0)),
        (Preprocessing(range=255), (0.0, 255.0)),
        (Preprocessing((127.5,), (127.5,), range=255), (-1.0, 1.0)),
        (IMAGENET, (-0.485 / 0.229, (1 - 0.406) / 0.225)),
        (Preprocessing((0.0,), (0.5, 0.25, 1.0)), (0.0, 4.0)),
    ],
)
def test_domain_of_images(
    preprocessing: Preprocessing | None, domain: tuple[float, float] | None
) -> None:
    found = input_domain(InputSpec("image", (1, 3, 8, 8)), preprocessing)
    assert found == (None if domain is None else pytest.approx(domain))


def test_domain_is_known_for_float_images_only() -> None:
    half = Preprocessing((0.5,), (0.5,))
    assert input_domain(InputSpec("x", (1, 10)), half) is None
    assert input_domain(InputSpec("x", (1, 3, 8, 8), "int64"), half) is None


class Tables(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.small, self.large, self.head = nn.Embedding(7, 4), nn.Embedding(90, 4), nn.Linear(4, 2)

    def forward(self, image: Tensor, ids: Tensor, other: Tensor, mask: Tensor) -> Tensor:
        tokens = self.small(ids) + self.large(ids) + self.large(other)
        return self.head((tokens * mask[..., None]).sum(1)) + image.mean((1, 2, 3))[:, None]


@pytest.fixture(scope="module")
def model() -> CapturedModel:
    inputs = [
        InputSpec("image", (1, 3, 16, 16)),
        InputSpec("ids", (1, 50), "int64"),
        InputSpec("other", (1, 50), "int32"),
        InputSpec("mask", (1, 50), "bool"),
    ]
    return capture(Tables(), inputs, preprocessing=IMAGENET)


def test_integers_index_existing_rows(model: CapturedModel) -> None:
    drawn = list(random_batches(model, 64, 32, generator()))
    ids, other, mask = (torch.cat([batch[i] for batch in drawn]) for i in (1, 2, 3))
    assert (int(ids.min()), int(ids.max())) == (0, 6)  # the smaller of its two tables
    assert (int(other.min()), int(other.max())) == (0, 89)
    assert (ids.dtype, other.dtype, mask.dtype) == (torch.int64, torch.int32, torch.bool)
    assert 0.4 < float(mask.float().mean()) < 0.6
    for batch in drawn:
        model(*batch)  # and the network takes them


class Indirect(nn.Module):
    """Ids that are cast, sliced or folded before they reach a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(40, 4), nn.Linear(4, 2)
        self.register_buffer("rows", torch.randn(4, 30))

    def forward(self, cast: Tensor, columns: Tensor, picked: Tensor, mask: Tensor) -> Tensor:
        tokens = self.table(cast.long()) + self.table(columns[:, 1:].reshape(-1, 2, 3)).mean(1)
        tokens = tokens + self.rows[:, picked.long()].permute(1, 2, 0)
        return self.head((tokens * mask.to(tokens.dtype)[..., None]).sum(1))


def test_ids_reach_the_table_behind_casts_and_slices() -> None:
    inputs = [
        InputSpec("cast", (1, 3), "int32"),
        InputSpec("columns", (1, 7), "int64"),
        InputSpec("picked", (1, 3), "int32"),
        InputSpec("mask", (1, 3), "int64"),
    ]
    model = capture(Indirect(), inputs)
    drawn = list(random_batches(model, 256, 64, generator()))
    highest = [max(int(batch[index].max()) for batch in drawn) for index in range(4)]
    # 768 draws of 40 ids miss the last one with probability (39 / 40) ** 768, below 1e-8
    assert highest == [39, 39, 29, 1]
    for batch in drawn:
        model(*batch)


def test_images_stay_in_the_domain_and_fill_it(model: CapturedModel) -> None:
    images = torch.cat([batch[0] for batch in random_batches(model, 64, 32, generator())])
    domain = input_domain(model.inputs[0], IMAGENET)
    assert domain is not None
    low, high = map(np.float32, domain)
    assert low <= images.numpy().min() < low + 0.1 * (high - low)
    assert high >= images.numpy().max() > high - 0.1 * (high - low)
    assert abs(float(images.mean()) - (low + high) / 2) < 0.05 * (high - low)


def test_bytes_are_pixels() -> None:
    class Bytes(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image.float().mean((2, 3))

    model = capture(Bytes(), [InputSpec("image", (1, 3, 16, 16), "uint8")])
    (image,) = next(random_batches(model, 8, 8, generator()))
    assert image.dtype == torch.uint8
    assert int(image.min()) < 20
    assert int(image.max()) > 235
    assert 40 < float(image.float().std()) < 90  # 0.27 of the range before clamping


def test_number_and_size_of_batches(model: CapturedModel) -> None:
    sizes = [batch[0].shape[0] for batch in random_batches(model, 64, 32, generator())]
    assert sizes == [32, 32]
    assert [b[0].shape[0] for b in random_batches(model, 5, 32, generator())] == [32]


def test_fixed_batch_gets_one_sample_at_a_time() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.view(1, 16))

    fixed = capture(Flat(), [InputSpec("x", (1, 4, 4))])
    assert not fixed.batch
    drawn = [tuple(batch[0].shape) for batch in random_batches(fixed, 6, 32, generator())]
    assert drawn == [(1, 4, 4)] * 6
