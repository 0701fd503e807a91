"""Attention masks: minus infinity becomes a number, and attention stays what it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.canonical.masks import HIDDEN
from edgekit.capture import CapturedModel, capture
from edgekit.graph import is_float_tensor
from edgekit.types import InputSpec

LENGTH, WIDE = 6, 8
X = InputSpec("x", (1, LENGTH, WIDE))
MASK = InputSpec("mask", (1, LENGTH), "int64")


def future() -> Tensor:
    return torch.ones(LENGTH, LENGTH).triu(1).bool()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDE, 3 * WIDE)
        self.register_buffer("future", future())
        self.register_buffer(
            "infinite", torch.zeros(LENGTH, LENGTH).masked_fill(future(), -torch.inf)
        )

    def mix(self, x: Tensor, hide: Callable[[Tensor], Tensor]) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, -1)
        return hide(query @ key.transpose(1, 2)).softmax(-1) @ value


class Filled(Attention):
    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x, lambda scores: scores.masked_fill(self.future, -torch.inf))


class FilledByTensor(Attention):
    def forward(self, x: Tensor) -> Tensor:
        low = torch.tensor(-torch.inf)
        return self.mix(x, lambda scores: torch.where(self.future, low, scores))


class Added(Attention):
    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x, lambda scores: scores + self.infinite)


class Scaled(Attention):
    """As most language models write it."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        hidden = (1.0 - mask[:, None].to(x.dtype)) * torch.finfo(x.dtype).min
        return self.mix(x, lambda scores: scores + hidden)


class Chosen(Attention):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.mix(x, lambda scores: torch.where(mask[:, None] > 0, scores, -torch.inf))


class Fused(Attention):
    """Scores that only the fused operator sees, with a mask of booleans."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (part[:, None] for part in self.qkv(x).chunk(3, -1))
        seen = mask[:, None, None] > 0
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen)


class Encoder(nn.Module):
    """PyTorch's own layer, which fills a tensor of zeros in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(WIDE, 2, 16, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.layer(x, src_key_padding_mask=mask == 0)


CONSTANT = [Filled, FilledByTensor, Added]
GIVEN = [Scaled, Chosen, Fused, Encoder]


def lowest(model: CapturedModel, *feeds: Tensor) -> float:
    """The least number in any float tensor of the graph."""
    seen: list[float] = []

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            value = super().run_node(n)
            if n.op != "output" and is_float_tensor(n):
                assert isinstance(value, Tensor)
                seen.append(float(value.min()))
            return value

    with torch.no_grad():
        Recorder(model.graph).run(*feeds)
    return min(seen)


@pytest.mark.parametrize("network", [*CONSTANT, *GIVEN])
def test_hidden_scores_are_numbers_and_attention_is_the_same(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module = network().eval()
    model = capture(module, [X] if network in CONSTANT else [X, MASK])
    x = torch.randn(3, LENGTH, WIDE)
    mask = torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]])
    feeds = (x,) if network in CONSTANT else (x, mask)
    # with gradients PyTorch's encoder takes the same operators as torch.export, not the fast ones
    expected = module(*feeds).detach()
    # what is hidden has weight zero before and after: the rest are the same float32 operations
    assert torch.allclose(model(*feeds)[0], expected, rtol=1e-5, atol=1e-6)
    # the scores themselves lie within a hundred of zero
    assert lowest(model, *feeds) >= HIDDEN - 100


@pytest.mark.parametrize("network", GIVEN)
def test_row_that_hides_everything_is_no_nan(network: type[nn.Module]) -> None:
    model = capture(network(), [X, MASK])
    feeds = torch.randn(2, LENGTH, WIDE), torch.zeros(2, LENGTH, dtype=torch.int64)
    assert bool(model(*feeds)[0].isfinite().all())


def test_infinity_that_is_not_for_a_softmax_alone_stays() -> None:
    class Returned(Attention):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            query, key, value = self.qkv(x).chunk(3, -1)
            scores = (query @ key.transpose(1, 2)).masked_fill(self.future, -torch.inf)
            return scores.softmax(-1) @ value, scores

    module = Returned().eval()
    feeds = torch.randn(1, LENGTH, WIDE)
    scores = capture(module, [X])(feeds)[1]
    assert torch.equal(scores.isneginf()[0], future())


def test_numbers_that_are_no_masks_stay() -> None:
    class Distances(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.log_softmax(x * -1e6, -1) + x.clamp(min=-1e9)

    module, x = Distances(), torch.rand(1, LENGTH, WIDE)
    assert torch.equal(capture(module, [X])(x)[0], module(x))
