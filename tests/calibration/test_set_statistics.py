"""Statistics of a set in parts, against mean and variance of all of it at once."""

from __future__ import annotations

import torch
from torch import Tensor

from edgekit.calibration._set_statistics import SetStatistics
from edgekit.calibration._teacher import Moments


def moments_of(x: Tensor) -> Moments:
    """``[N, C, H, W]`` to each sample's moments."""
    return Moments(x.mean((2, 3)), x.square().mean((2, 3)))


def parts(count: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs of two layers, whose parts differ in mean and spread."""
    draws = torch.Generator().manual_seed(0)
    return [
        (
            k + (1 + k) * torch.randn(5, 3, 4, 6, generator=draws),
            torch.randn(5, 2, 2, 3, generator=draws) - k,
        )
        for k in range(count)
    ]


def direct(layers: list[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance by channel over all parts, layers side by side, in float64."""
    whole = [torch.cat(list(each)).double() for each in zip(*layers, strict=True)]
    mean = torch.cat([x.mean((0, 2, 3)) for x in whole])
    return mean, torch.cat([x.var((0, 2, 3), unbiased=False) for x in whole])


def test_parts_together_are_the_set() -> None:
    made, statistics = parts(3), SetStatistics(3)
    for index, layers in enumerate(made):
        found = statistics.with_part(index, [moments_of(x) for x in layers])
        mean, variance = direct(list(made[: index + 1]))  # parts never seen do not count
        # E[x^2] - E[x]^2 of values up to 10 in float32: a few units of 100 * 2^-24
        torch.testing.assert_close(found.mean.double(), mean, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.variance.double(), variance, rtol=0, atol=1e-4)


def test_part_seen_again_replaces_what_it_was() -> None:
    made, statistics = parts(2), SetStatistics(2)
    for index, layers in enumerate(made):
        statistics.with_part(index, [moments_of(x * 3) for x in layers])
    for index, layers in enumerate(made):
        found = statistics.with_part(index, [moments_of(x) for x in layers])
    mean, variance = direct(list(made))
    torch.testing.assert_close(found.mean.double(), mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.variance.double(), variance, rtol=0, atol=1e-4)


def test_gradient_reaches_the_live_part_alone() -> None:
    first, second = (x.clone().requires_grad_() for x, _ in parts(2))
    statistics = SetStatistics(2)
    statistics.with_part(0, [moments_of(first)])
    found = statistics.with_part(1, [moments_of(second)])
    found.mean.sum().backward()
    assert first.grad is None
    # each value is one of 5 * 24 of its channel in one of two parts
    assert second.grad is not None
    torch.testing.assert_close(second.grad, torch.full_like(second, 1 / (5 * 24 * 2)))


def test_state_restores() -> None:
    made, statistics, other = parts(3), SetStatistics(3), SetStatistics(3)
    for index in (0, 1):
        statistics.with_part(index, [moments_of(x) for x in made[index]])
    other.restore(statistics.state())
    live = [moments_of(x) for x in made[2]]
    one, two = statistics.with_part(2, live), other.with_part(2, live)
    assert torch.equal(one.mean, two.mean)
    assert torch.equal(one.variance, two.variance)
