"""Computed weights become constants; what must not be computed once stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from edgekit.canonical.constants import fold_constants
from edgekit.capture import CapturedModel, capture
from edgekit.graph import OpKind, op_kind
from edgekit.types import InputSpec

Capture = Callable[..., CapturedModel]
Operators = Callable[[CapturedModel], list[str]]
Parameters = Callable[[CapturedModel], dict[str, Tensor]]


class Standardized(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        spread, mean = torch.var_mean(self.weight, [1, 2, 3], keepdim=True, unbiased=False)
        weight = (self.weight - mean) / (spread + 1e-5).sqrt()
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class StandardizedByNorm(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias)


class Around(nn.Module):
    """A layer inside a network, so that its parameters have a path."""

    def __init__(self, layer: nn.Module, times: int = 1) -> None:
        super().__init__()
        self.layer, self.times = layer, times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = F.relu(self.layer(x))
        return x


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "weight norm": lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
    "older weight norm": lambda: nn.utils.weight_norm(nn.Conv2d(3, 4, 3)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)),
    "older spectral norm": lambda: nn.utils.spectral_norm(nn.Conv2d(3, 4, 3)),
    "standardized": lambda: Standardized(3, 4, 3),
    "standardized by a norm": lambda: StandardizedByNorm(3, 4, 3),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # the older forms are what is tested
@pytest.mark.parametrize("name", LAYERS)
def test_computed_weight_is_folded_under_the_weights_own_name(
    captured: Capture, operators: Operators, parameters: Parameters, name: str
) -> None:
    torch.manual_seed(0)
    model = captured(Around(LAYERS[name]()), (3, 7, 7))
    assert operators(model) == ["conv2d", "relu"]
    assert set(parameters(model)) == {"layer.weight", "layer.bias"}
    assert set(model.graph.state_dict()) == {"layer.weight", "layer.bias"}, "the parts are gone"


def test_weight_computed_at_every_call_is_one_constant(
    captured: Capture, parameters: Parameters
) -> None:
    layer = parametrizations.weight_norm(nn.Linear(5, 5))
    model = captured(Around(layer, times=3), (5,))
    assert set(parameters(model)) == {"layer.weight", "layer.bias"}


def test_parameter_read_in_two_ways_keeps_its_name(
    captured: Capture, parameters: Parameters
) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(6, 4))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.linear(x, self.table), self.table.T * 2)

    model = captured(Tied(), (4,))
    found = parameters(model)
    assert set(found) == {"table", "table_1"}
    assert torch.equal(found["table_1"], found["table"].T * 2)


def test_random_weight_stays_random() -> None:
    root = nn.Module()
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    root.register_parameter("weight", nn.Parameter(torch.ones(2, 2)))
    weight = graph.get_attr("weight")
    noise = graph.call_function(torch.ops.aten.rand_like.default, (weight,))
    graph.output((graph.call_function(torch.ops.aten.add.Tensor, (x, noise)),))
    for node in (x, weight, noise):
        node.meta["val"] = torch.ones(2, 2)
    module = torch.fx.GraphModule(root, graph)
    fold_constants(module)
    assert any(node.target is torch.ops.aten.rand_like.default for node in module.graph.nodes)


def test_broadcast_parameter_does_not_grow(captured: Capture, operators: Operators) -> None:
    class Broad(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.offset = nn.Parameter(torch.randn(64, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.offset.expand(64, 80, 80)  # 1.6 MB out of 256 bytes

    model = captured(Broad(), (64, 80, 80))
    assert operators(model) == ["expand", "add"]
    assert sum(value.numel() for value in model.graph.state_dict().values()) == 64


def test_what_depends_on_the_batch_stays(captured: Capture) -> None:
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.randn(1, 1, 4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)

    assert captured(Token(), (3, 4)).batch


def test_stored_statistics_are_not_changed_by_folding() -> None:
    class Normalized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.weight = nn.BatchNorm1d(4), nn.Parameter(torch.randn(6, 4))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.norm(self.weight))

    module = Normalized()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    model = capture(module, [InputSpec("x", (1, 4))])
    assert [op_kind(node) for node in model.graph.graph.nodes if node.op == "call_function"] == [
        OpKind.LINEAR
    ]
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())
