"""The budget of work, from a count of multiplications made here by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgekit.calibration import _budget
from edgekit.calibration._budget import affordable_rounds
from edgekit.capture import CapturedModel, capture
from edgekit.types import InputSpec


class Counted(nn.Module):
    """One layer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.depthwise(self.conv(x)).mean((2, 3)))


WORK = 16 * 16 * 8 * 27 + 8 * 8 * 8 * 25 + 80
"""Multiplications of one image of 16 x 16: positions times outputs times weights of each output."""


@pytest.fixture(scope="module")
def model() -> CapturedModel:
    return capture(Counted().eval(), [InputSpec("x", (1, 3, 16, 16))])


def test_rounds_use_up_the_budget(model: CapturedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_budget, "_ROUNDS", (10, 1000))
    monkeypatch.setattr(_budget, "_WORK", WORK * 7 * 100.0)
    assert affordable_rounds(model, 7, None) == 100
    assert affordable_rounds(model, 14, None) == 50


def test_window_makes_a_round_cheaper(
    model: CapturedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_budget, "_ROUNDS", (10, 1000))
    monkeypatch.setattr(_budget, "_WORK", WORK * 40.0)
    assert affordable_rounds(model, 1, (8, 16)) == 80


def test_rounds_have_a_least_and_a_largest_number(model: CapturedModel) -> None:
    least, most = _budget._ROUNDS
    assert affordable_rounds(model, 1, None) == most
    assert affordable_rounds(model, 10**9, None) == least


def test_no_weighted_layer_is_no_work() -> None:
    model = capture(nn.BatchNorm2d(3).eval(), [InputSpec("x", (1, 3, 4, 4))])
    assert affordable_rounds(model, 10**9, None) == _budget._ROUNDS[1]


def test_same_budget_whatever_the_machine(model: CapturedModel) -> None:
    """Counted and not timed: the number of threads does not enter."""
    samples = round(_budget._WORK / WORK / 50)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(affordable_rounds(model, samples, None))
    finally:
        torch.set_num_threads(before)
    assert found == [50, 50]
