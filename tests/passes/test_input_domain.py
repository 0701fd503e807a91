"""Exact ranges of inputs whose preprocessing is known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgekit.capture import CapturedModel, capture
from edgekit.observe import observe
from edgekit.passes.input_domain import with_input_domain
from edgekit.quant.statistics import Statistics
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
