"""Samples are found in outputs of any layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit.capture import CapturedModel, capture
from edgekit.samples import SampleAxis, batch_of, sample_axes, stack_inputs, together
from edgekit.types import InputSpec


class Layouts(nn.Module):
    """``[N, T, F]`` as it is, time first, rows of all samples in one table, and anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors = nn.Parameter(torch.randn(5, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return x * 2, x.transpose(0, 1) + 1, x.reshape(-1, 4) - 1, self.anchors * 3


@pytest.fixture(scope="module")
def model() -> CapturedModel:
    return capture(Layouts(), [InputSpec("x", (1, 3, 4))])


def test_the_axis_that_grows_with_the_batch_is_found(model: CapturedModel) -> None:
    assert sample_axes(model) == (
        SampleAxis((1, 3, 4), 0),
        SampleAxis((3, 1, 4), 1),
        SampleAxis((3, 4), 0),
        SampleAxis((5, 2), None),
    )


def test_batch_and_single_samples_give_the_same(model: CapturedModel) -> None:
    x = torch.randn(6, 3, 4)
    singles = [model(x[index : index + 1]) for index in range(6)]
    for place, (axis, whole) in enumerate(zip(sample_axes(model), model(x), strict=True)):
        stacked = np.stack([single[place].detach().numpy() for single in singles])
        split = axis.split(whole.detach().numpy(), 6)
        assert len(split) == 6
        np.testing.assert_array_equal(split, axis.squeeze(stacked))


def test_fixed_batch_has_no_axis_that_grows() -> None:
    fixed = capture(Layouts(), [InputSpec("x", (2, 3, 4))])
    assert not fixed.batch
    assert {axis.axis for axis in sample_axes(fixed)} == {None}
    assert together(fixed, sample_axes(fixed), 32) == 1


def test_batches_are_cut_only_where_every_tensor_has_samples(model: CapturedModel) -> None:
    axes = sample_axes(model)
    assert together(model, axes, 32) == 1, "the anchors belong to no sample"
    assert together(model, axes[:3], 32) == 32


def test_inputs_survive_stacking() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, table: Tensor) -> Tensor:
            return x @ table.T

    two = capture(Two(), [InputSpec("x", (1, 4)), InputSpec("table", (6, 4))])
    batches = [(torch.randn(1, 4), torch.randn(6, 4)) for _ in range(5)]
    feeds = stack_inputs(two, batches)
    assert {name: array.shape for name, array in feeds.items()} == {
        "x": (5, 1, 4),
        "table": (5, 6, 4),
    }
    for index, batch in enumerate(batches):
        for value, expected in zip(batch_of(feeds, index, 1), batch, strict=True):
            assert torch.equal(value, expected)
