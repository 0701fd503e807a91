"""GPTQ against exhaustive search and against the closed forms that it rests on."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from edgekit.rounding.gptq import best_scale, gptq


def case(rows: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """A weight, and the second moment of strongly correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=generator)
    mixing = torch.randn(width, width, generator=generator) + 2.0
    inputs = torch.randn(400, width, generator=generator) @ mixing
    return weight, inputs.T @ inputs / 400


def error(weight: Tensor, codes: Tensor, steps: Tensor, moment: Tensor) -> Tensor:
    difference = codes * steps - weight
    return ((difference @ moment) * difference).sum(1)


def nearest(weight: Tensor, steps: Tensor) -> Tensor:
    return (weight / steps).round().clamp(-8, 7)


def test_error_is_far_below_nearest_and_near_the_least() -> None:
    """Three inputs of correlation 0.9 and more: 8 neighbours of each row, all tried."""
    weight, moment = case(40, 3, 0)
    steps = torch.full((40, 1), 0.4)
    down = (weight / steps).floor()
    tried = [
        error(weight, (down + torch.tensor(up)).clamp(-8, 7), steps, moment)
        for up in itertools.product((0.0, 1.0), repeat=3)
    ]
    least = torch.stack(tried).amin(0).sum()
    found = error(weight, gptq(weight, moment, steps, 4), steps, moment).sum()
    assert found < 0.5 * error(weight, nearest(weight, steps), steps, moment).sum()
    assert found < 1.5 * least  # a greedy order misses the best of some rows


def test_independent_inputs_are_rounded_to_nearest() -> None:
    weight, _ = case(8, 130, 1)  # more columns than one block of updates
    steps = torch.rand(8, 1) + 0.2
    codes = gptq(weight, torch.diag(torch.rand(130) + 0.1), steps, 4)
    assert torch.equal(codes, nearest(weight, steps))


def test_blocks_have_their_own_steps_and_codes_stay_on_the_grid() -> None:
    weight, moment = case(16, 64, 2)
    steps = (torch.rand(16, 4) * 0.3 + 0.1).repeat_interleave(16, 1)
    codes = gptq(weight, moment, steps, 4)
    assert codes.min() >= -8
    assert codes.max() <= 7
    assert torch.equal(codes, codes.round())
    before = error(weight, nearest(weight, steps), steps, moment).sum()
    # steps from 0.1 clip weights beyond 0.7 and their errors can only be made up for
    assert error(weight, codes, steps, moment).sum() < 0.2 * before


def test_a_dead_input_does_not_matter() -> None:
    weight, moment = case(4, 10, 3)
    moment[3], moment[:, 3] = 0.0, 0.0
    codes = gptq(weight, moment, torch.full((4, 1), 0.3), 4)
    assert codes.isfinite().all()


def test_scale_is_where_the_error_is_least() -> None:
    weight, moment = case(6, 12, 4)
    scale = torch.full((6,), 0.35)
    codes = gptq(weight, moment, scale[:, None], 4)
    found = best_scale(weight, moment, codes, scale)
    assert torch.equal(found, found.half().float())
    least = error(weight, codes, found[:, None], moment)
    for factor in (0.99, 1.01):  # twenty times the spacing of FP16 numbers
        assert (least < error(weight, codes, found[:, None] * factor, moment)).all()


def test_a_scale_far_away_is_not_believed() -> None:
    moment, scale = torch.eye(1), torch.tensor([0.1])
    codes = torch.tensor([[7.0]])  # clipped: the best scale for it would be ten times as large
    assert best_scale(torch.tensor([[7.0]]), moment, codes, scale) == pytest.approx(0.1, rel=2**-11)
