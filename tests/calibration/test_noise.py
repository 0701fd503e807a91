"""The lower control: white noise through the unaltered network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekit.calibration.noise import GaussianNoise
from edgekit.capture import capture
from edgekit.types import InputSpec, Preprocessing


def test_noise_goes_through_the_network_as_it_is() -> None:
    norm = nn.BatchNorm2d(3)
    norm.running_mean.fill_(5.0)  # type: ignore[union-attr]
    model = capture(norm, [InputSpec("x", (1, 3, 16, 16))])
    found = GaussianNoise(samples=64, batch=32).observe(model)
    # evaluation mode subtracts the stored mean of 5; 16,384 values: standard error 0.008
    assert found.tensors["batch_norm"].channel_mean.tolist() == pytest.approx([-5.0] * 3, abs=0.04)
    assert float(found.tensors["batch_norm"].values.std()) == pytest.approx(1.0, abs=0.04)


def test_result_is_labelled_as_a_control() -> None:
    model = capture(nn.Conv2d(3, 2, 3), [InputSpec("x", (1, 3, 8, 8))])
    found = GaussianNoise(samples=4).observe(model)
    assert found.method == "noise"
    assert found.notes == ("control: Gaussian noise does not calibrate a network",)
    assert {tensor.rule for tensor in found.tensors.values()} == {"noise"}


def test_images_are_drawn_in_their_domain() -> None:
    pre = Preprocessing((0.5,), (0.5,))
    model = capture(nn.Conv2d(3, 2, 3), [InputSpec("x", (1, 3, 16, 16))], preprocessing=pre)
    found = GaussianNoise(samples=32).observe(model)
    tensor = next(iter(found.tensors.values()))
    assert (tensor.minimum, tensor.maximum) == (-1.0, 1.0)  # 0.54 spread: some values are clamped


def test_seed_and_progress() -> None:
    model = capture(nn.Linear(4, 2), [InputSpec("x", (1, 4))])
    seen: list[float] = []
    first = GaussianNoise(samples=64, batch=32).observe(
        model, progress=lambda _stage, done: seen.append(done)
    )
    assert seen == [0.5, 1.0]
    again, other = GaussianNoise().observe(model), GaussianNoise(seed=1).observe(model)
    values = [torch.cat([t.values for t in s.tensors.values()]) for s in (first, again, other)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
