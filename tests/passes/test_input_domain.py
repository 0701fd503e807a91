"""Exact ranges of inputs whose preprocessing is known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgekit.capture import CapturedModel, capture
from edgekit.observe import observe
from edgekit.passes.input_domain import with_input_domain
from edgekit.quant.statistics import MAX_VALUES, Statistics
from edgekit.types import InputSpec, Preprocessing


class Network(nn.Module):
    def forward(self, image: Tensor, scale: Tensor) -> Tensor:
        return image.mean((2, 3)) * scale


def prepared(preprocessing: Preprocessing | None) -> tuple[CapturedModel, Statistics]:
    inputs = [InputSpec("image", (1, 3, 8, 8)), InputSpec("scale", (1, 3))]
    model = capture(Network(), inputs, preprocessing=preprocessing)
    batch = (torch.rand(2, 3, 8, 8), torch.ones(2, 3))
    return model, observe(model, [batch], method="m", generator=torch.Generator())


def test_image_takes_the_range_of_its_pixels() -> None:
    model, statistics = prepared(Preprocessing((0.5,), (0.25,)))
    found = with_input_domain(model, statistics).tensors
    assert (found["image"].minimum, found["image"].maximum) == (-2.0, 2.0)
    assert found["image"].exact
    assert found["image"].prior is None
    assert found["image"].rule == "preprocessing"
    for name, tensor in statistics.tensors.items():
        if name != "image":
            assert found[name] is tensor
    assert not statistics.tensors["image"].exact


def test_unknown_preprocessing_leaves_the_estimate() -> None:
    model, statistics = prepared(None)
    assert with_input_domain(model, statistics).tensors == statistics.tensors


class Words(nn.Module):
    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, width)
        self.conv = nn.Conv1d(4, 2, 1)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(self.table(ids)), self.conv(self.table(ids + 0))


def words(rows: int, width: int) -> tuple[Words, CapturedModel, Statistics]:
    module = Words(rows, width)
    model = capture(module, [InputSpec("ids", (1, 4), "int64")])
    batch = (torch.zeros(2, 4, dtype=torch.int64),)  # the other rows are never looked up
    return module, model, observe(model, [batch], method="m", generator=torch.Generator())


def test_embedding_takes_the_range_of_all_rows() -> None:
    module, model, statistics = words(37, 5)
    weight = module.table.weight.detach()
    assert statistics.tensors["embedding"].maximum < float(weight.max())
    found = with_input_domain(model, statistics).tensors
    got = found["embedding"]
    assert (got.minimum, got.maximum) == (float(weight.min()), float(weight.max()))
    assert torch.equal(got.channel_mean, weight.mean(0))
    assert torch.equal(got.channel_minimum, weight.amin(0))
    assert torch.equal(got.channel_maximum, weight.amax(0))
    assert torch.equal(got.values, weight.flatten())
    assert torch.equal(got.channels, torch.arange(5).repeat(37))
    assert got.rule == "id domain: all 37 rows of the table"
    assert found["tanh"] is statistics.tensors["tanh"]


def test_embedding_whose_positions_are_channels_keeps_their_number() -> None:
    module, model, statistics = words(37, 5)
    got = with_input_domain(model, statistics).tensors["embedding_1"]
    assert got.maximum == float(module.table.weight.max())
    assert got.channel_mean.shape == (4,)  # a convolution reads it: axis 1 holds the channels
    assert int(got.channels.max()) == 3


def test_large_table_is_sampled() -> None:
    module, model, statistics = words(MAX_VALUES // 64 + 1, 64)
    got = with_input_domain(model, statistics).tensors["embedding"]
    assert len(got.values) == len(got.channels) == MAX_VALUES
    assert torch.equal(got.channel_mean, module.table.weight.detach().mean(0))
