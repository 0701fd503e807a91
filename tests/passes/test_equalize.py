"""Equalization: the network computes the same, and its channels are spread more evenly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.allocation import allocate
from edgekit.capture import CapturedModel, capture
from edgekit.observe import observe
from edgekit.passes.equalize import MAX_LIFT, equalize
from edgekit.quant.statistics import Statistics
from edgekit.types import SCHEMES, InputSpec, LayerBits


class Parts(nn.Module):
    """Layers whose first has channels of very different size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(8, 8, 3) for _ in range(3))
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.grouped, self.up = nn.Conv2d(8, 8, 3, groups=2), nn.ConvTranspose2d(8, 8, 2)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.wide = nn.Conv2d(12, 8, 3)
        sizes = torch.logspace(0, 2, 8)
        with torch.no_grad():
            for layer in (self.a, self.first):
                layer.weight *= (1 / sizes).reshape(-1, *(1,) * (layer.weight.dim() - 1))
                layer.bias *= 1 / sizes


class Chain(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))


class WithoutClamp(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class ToDepthwise(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.depthwise(F.relu(self.a(x)))


class TwoReaders(Parts):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.a(x))
        return self.b(x), self.depthwise(x)


class Padded(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.pad(F.relu(self.a(x)), (0, 1, 2, 0)))


class Dense(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))


CHANGED: dict[type[Parts], tuple[int, ...]] = {
    Chain: (8, 8, 8),
    WithoutClamp: (8, 8, 8),
    ToDepthwise: (8, 8, 8),
    TwoReaders: (8, 8, 8),
    Padded: (8, 8, 8),
    Dense: (8,),
}


class Ceiling(Parts):
    """A lifted channel could meet the ceiling."""

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu6(self.a(x)))


class Swish(Parts):
    """No factor passes through a curve."""

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.silu(self.a(x)))


class Returned(Parts):
    """Something outside sees the tensor."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.a(x))
        return self.b(x), x


class Residual(Parts):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return F.pad(x, (-1, -1, -1, -1)) + self.b(x)


class SharedReader(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.b(F.relu(self.a(x))))


class ToGroups(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.grouped(F.relu(self.a(x)))


class ToTransposed(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.relu(self.a(x)))


class MixesPositions(Parts):
    """As many positions as channels, but the linear layer reads positions."""

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.a(x)))


class PadsChannels(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.wide(F.pad(F.relu(self.a(x)), (0, 0, 0, 0, 0, 4)))


UNCHANGED: dict[type[Parts], tuple[int, ...]] = {
    Ceiling: (8, 8, 8),
    Swish: (8, 8, 8),
    Returned: (8, 8, 8),
    Residual: (8, 8, 8),
    SharedReader: (8, 9, 9),
    ToGroups: (8, 8, 8),
    ToTransposed: (8, 8, 8),
    MixesPositions: (8, 10, 10),
    PadsChannels: (8, 8, 8),
}


def _bits(model: CapturedModel) -> dict[str, LayerBits]:
    return allocate(model.graph.graph, SCHEMES["w8a8"])


def observed(network: type[nn.Module], shape: tuple[int, ...]) -> tuple[CapturedModel, Statistics]:
    torch.manual_seed(0)
    model = capture(network(), [InputSpec("x", (1, *shape))])
    return model, statistics_of(model)


def statistics_of(model: CapturedModel) -> Statistics:
    shape = model.inputs[0].shape[1:]
    x = torch.randn(64, *shape, generator=torch.Generator().manual_seed(1))
    return observe(model, [(x,)], method="m", generator=torch.Generator())


def outputs(model: CapturedModel) -> list[Tensor]:
    # beyond what was observed: three times as far
    x = 3 * torch.randn(16, *model.inputs[0].shape[1:], generator=torch.Generator().manual_seed(2))
    return list(model(x))


def assert_same(before: CapturedModel, after: CapturedModel) -> None:
    for a, b in zip(outputs(before), outputs(after), strict=True):
        # factors are no powers of two: one more rounding of 6e-8 for each of 72 products
        assert torch.allclose(a, b, atol=2e-5 * float(a.abs().max()), rtol=0)


@pytest.mark.parametrize("network", CHANGED)
def test_network_computes_the_same(network: type[Parts]) -> None:
    model, statistics = observed(network, CHANGED[network])
    stored = {name: value.clone() for name, value in model.graph.state_dict().items()}
    equal, _, chosen = equalize(model, statistics, _bits(model))
    assert len(chosen) == 1
    assert all(0 < exponent <= 1 for exponent in chosen.values())
    assert_same(model, equal)
    assert all(torch.equal(model.graph.state_dict()[name], value) for name, value in stored.items())


@pytest.mark.parametrize("network", CHANGED)
def test_statistics_are_those_of_the_new_network(network: type[Parts]) -> None:
    model, statistics = observed(network, CHANGED[network])
    equal, lifted, _ = equalize(model, statistics, _bits(model))
    again = statistics_of(equal)
    assert set(lifted.tensors) == set(again.tensors)
    for name, tensor in lifted.tensors.items():
        wanted = again.tensors[name]
        for field in ("channel_mean", "channel_minimum", "channel_maximum", "values"):
            found, expected = getattr(tensor, field), getattr(wanted, field)
            scale = float(expected.abs().max())
            assert torch.allclose(found, expected, atol=1e-4 * scale, rtol=0), (name, field)
        assert tensor.minimum == pytest.approx(wanted.minimum, rel=1e-4, abs=1e-6)
        assert tensor.maximum == pytest.approx(wanted.maximum, rel=1e-4)


@pytest.mark.parametrize("network", CHANGED)
def test_small_channels_are_lifted_and_none_beyond_the_widest(network: type[Parts]) -> None:
    model, statistics = observed(network, CHANGED[network])
    _, lifted, chosen = equalize(model, statistics, _bits(model))
    (name,) = chosen

    def limits(tensors: Statistics) -> Tensor:
        tensor = tensors.tensors[name]
        return torch.maximum(tensor.channel_maximum, -tensor.channel_minimum)

    before, after = limits(statistics), limits(lifted)
    factors = after / before
    assert bool((factors >= 1 - 1e-6).all())
    assert float(factors.max()) <= MAX_LIFT
    assert float(after.max()) == pytest.approx(float(before.max()), rel=1e-5)
    assert float(after.min() / after.max()) > 2 * float(before.min() / before.max())


@pytest.mark.parametrize("network", UNCHANGED)
def test_pair_that_cannot_be_equalized_is_left_alone(network: type[Parts]) -> None:
    model, statistics = observed(network, UNCHANGED[network])
    equal, lifted, chosen = equalize(model, statistics, _bits(model))
    assert chosen == {}
    assert lifted.tensors == statistics.tensors
    assert_same(model, equal)


def test_even_channels_gain_nothing() -> None:
    class Even(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 1)
            nn.init.eye_(self.a.weight.data[:, :, 0, 0])

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(x)))

    model, statistics = observed(Even, (4, 32, 32))
    _, _, chosen = equalize(model, statistics, _bits(model))
    assert chosen == {}


def test_shared_bias_is_not_scaled_twice() -> None:
    class SharedBias(Parts):
        def __init__(self) -> None:
            super().__init__()
            self.c.bias = self.a.bias

        def forward(self, x: Tensor) -> Tensor:
            return self.c(F.relu(self.a(x)))

    model, statistics = observed(SharedBias, (8, 8, 8))
    equal, _, _ = equalize(model, statistics, _bits(model))
    assert_same(model, equal)
