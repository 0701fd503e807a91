"""Tensor observers against numpy over everything that was seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit.quant.statistics import SAMPLE_SIZE, TensorObserver, TensorStatistics


def gather(batches: list[torch.Tensor], axis: int, seed: int = 0) -> TensorStatistics:
    observer = TensorObserver(axis, torch.Generator().manual_seed(seed), "rule")
    for batch in batches:
        observer.update(batch)
    return observer.statistics()


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((2, 5, 4, 3), 1), ((2, 5, 7), 1), ((2, 5, 7), -1), ((3, 6), -1), ((3, 6), 1)],
)
def test_channel_statistics_equal_numpy(shape: tuple[int, ...], axis: int) -> None:
    rng = np.random.default_rng(0)
    batches = [rng.normal(1.0, 2.0, (count, *shape[1:])) for count in (2, 1, 4)]  # uneven sizes
    found = gather([torch.from_numpy(batch).float() for batch in batches], axis)
    everything = np.concatenate(batches)
    others = tuple(a for a in range(len(shape)) if a != axis % len(shape))
    # float32 inputs: 2**-24 relative, and the sum of up to 100 of them
    assert found.channel_mean.numpy() == pytest.approx(everything.mean(others), abs=1e-6)
    assert found.channel_minimum.numpy() == pytest.approx(everything.min(others), rel=1e-6)
    assert found.channel_maximum.numpy() == pytest.approx(everything.max(others), rel=1e-6)
    assert found.minimum == pytest.approx(everything.min(), rel=1e-6)
    assert found.maximum == pytest.approx(everything.max(), rel=1e-6)
    assert np.sort(found.values.numpy()) == pytest.approx(np.sort(everything.ravel()), rel=1e-6)
    assert found.rule == "rule"


def test_mean_of_large_numbers_does_not_drown() -> None:
    # a float32 sum of 2**22 values near 1000 would be off by far more than 0.01
    x = torch.full((64, 1, 256, 256), 1000.25)
    assert float(gather([x], 1).channel_mean) == 1000.25


def test_vector_has_one_channel() -> None:
    found = gather([torch.tensor([1.0, 3.0]), torch.tensor([-2.0])], 0)
    assert found.channel_mean.tolist() == pytest.approx([2 / 3])
    assert (found.channel_minimum.tolist(), found.channel_maximum.tolist()) == ([-2.0], [3.0])


@pytest.mark.parametrize("axis", [1, -1])
def test_each_sampled_value_knows_its_channel(axis: int) -> None:
    x = torch.zeros(3, 5, 64, 128)  # larger than the sample
    assert x.numel() > SAMPLE_SIZE
    marks = torch.arange(x.shape[axis], dtype=torch.float32)
    x += marks.reshape([-1 if a == axis % 4 else 1 for a in range(4)])
    found = gather([x, x[:1]], axis)
    assert torch.equal(found.values, found.channels.float())
    assert set(found.channels.tolist()) == set(range(x.shape[axis]))


def test_sample_is_representative_bounded_and_repeatable() -> None:
    x = torch.randn(8, 4, 128, 128, generator=torch.Generator().manual_seed(0))
    first, again, other = (gather([x], 1, seed) for seed in (1, 1, 2))
    assert len(first.values) == SAMPLE_SIZE
    assert torch.equal(first.values, again.values)
    assert not torch.equal(first.values, other.values)
    # standard errors of mean and spread of 65,536 normal values: 0.004 and 0.003; four times that
    assert float(first.values.mean()) == pytest.approx(float(x.mean()), abs=0.016)
    assert float(first.values.std()) == pytest.approx(float(x.std()), abs=0.012)


def test_what_was_observed_is_not_kept_alive_or_changed() -> None:
    x = torch.ones(2, 3)
    observer = TensorObserver(1, torch.Generator(), "rule")
    observer.update(x)
    x.fill_(9.0)  # the interpreter may reuse memory, as in-place operators do
    found = observer.statistics()
    assert found.values.tolist() == [1.0] * 6
    assert found.maximum == 1.0
