"""Bags of embeddings against ``nn.EmbeddingBag``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from edgekit.capture import CapturedModel, capture
from edgekit.errors import UnsupportedError
from edgekit.types import InputSpec

Capture = Callable[..., CapturedModel]
Operators = Callable[[CapturedModel], list[str]]
IDS = InputSpec("ids", (1, 6), "int64")


@pytest.mark.parametrize(("mode", "reduction"), [("sum", "sum"), ("mean", "mean"), ("max", "amax")])
def test_bag_in_each_row(
    captured: Capture, operators: Operators, mode: str, reduction: str
) -> None:
    model = captured(nn.EmbeddingBag(9, 4, mode=mode), IDS)
    assert model.batch
    assert operators(model) == ["embedding", reduction]


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_padding_counts_for_nothing(captured: Capture, operators: Operators, mode: str) -> None:
    module = nn.EmbeddingBag(9, 4, mode=mode, padding_idx=3)
    with torch.no_grad():
        module.weight[3] = 7.0  # a trained or loaded table need not have zeros there
    model = captured(module, IDS)
    assert "embedding_bag" not in operators(model)
    padded = torch.tensor([[3, 3, 3, 3, 3, 3], [3, 1, 3, 2, 2, 8]])
    assert torch.allclose(model(padded)[0], module(padded), atol=1e-6)


def test_weights_of_samples(captured: Capture, operators: Operators) -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(9, 4, mode="sum")

        def forward(self, ids: Tensor, weights: Tensor) -> Tensor:
            return self.bag(ids, per_sample_weights=weights)

    model = captured(Weighted(), IDS, InputSpec("weights", (1, 6)))
    assert "embedding_bag" not in operators(model)


def test_maximum_that_skips_padding_stays_a_bag(captured: Capture, operators: Operators) -> None:
    model = captured(nn.EmbeddingBag(9, 4, mode="max", padding_idx=3), IDS)
    assert "embedding_bag" in operators(model)


class Offsets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(9, 4, mode="sum")

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        return self.bag(ids, offsets)


class FixedOffsets(Offsets):
    def forward(self, ids: Tensor) -> Tensor:  # type: ignore[override]
        return self.bag(ids.flatten(), torch.tensor([0, 1, 4]))


def test_offsets_of_its_own_stay_a_bag(captured: Capture, operators: Operators) -> None:
    assert "embedding_bag" in operators(captured(FixedOffsets(), IDS))


def test_offsets_as_input_are_refused() -> None:
    specs = [InputSpec("ids", (6,), "int64"), InputSpec("offsets", (3,), "int64")]
    with pytest.raises(UnsupportedError, match="offsets of a bag of embeddings") as caught:
        capture(Offsets(), specs)
    assert "[N, L]" in str(caught.value.hint)
