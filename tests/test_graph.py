"""Operator kinds on graphs that torch.export really makes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from edgekit.capture import CapturedModel, capture
from edgekit.graph import (
    OpKind,
    activation_nodes,
    clamp_bounds,
    constant,
    foldable_layer,
    is_float_tensor,
    op_kind,
    output_nodes,
    store,
)
from edgekit.types import InputSpec


class Function(nn.Module):
    """A network without parameters."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def captured(module: nn.Module | Callable[[Tensor], Tensor], *shape: int) -> CapturedModel:
    module = module if isinstance(module, nn.Module) else Function(module)
    return capture(module, [InputSpec("x", (1, *(shape or (4, 6, 6))))])


def calls(model: CapturedModel) -> list[fx.Node]:
    return [node for node in model.graph.graph.nodes if node.op == "call_function"]


KINDS: dict[str, tuple[nn.Module | Callable[[Tensor], Tensor], OpKind]] = {
    "conv": (nn.Conv2d(4, 2, 3), OpKind.CONV),
    "conv same": (nn.Conv2d(4, 2, 3, padding="same"), OpKind.CONV),
    "transposed": (nn.ConvTranspose2d(4, 2, 3), OpKind.CONV_TRANSPOSE),
    "linear": (nn.Linear(6, 2), OpKind.LINEAR),
    "batch norm": (nn.BatchNorm2d(4), OpKind.BATCH_NORM),
    "relu": (F.relu, OpKind.CLAMP_ZERO),
    "relu6": (F.relu6, OpKind.CLAMP_ZERO),
    "clamp at zero": (lambda x: x.clamp(0, 3), OpKind.CLAMP_ZERO),
    "clamp min": (lambda x: x.clamp_min(0), OpKind.CLAMP_ZERO),
    "clamp keyword": (lambda x: x.clamp(min=0.0), OpKind.CLAMP_ZERO),
    "hardtanh": (lambda x: F.hardtanh(x, 0.0, 1.0), OpKind.CLAMP_ZERO),
    "clamp elsewhere": (lambda x: x.clamp(-1, 3), OpKind.OTHER),
    "clamp above": (lambda x: x.clamp(max=3), OpKind.OTHER),
    "hardtanh around zero": (F.hardtanh, OpKind.OTHER),
    "max pool": (nn.MaxPool2d(2), OpKind.MAX_POOL),
    "average pool": (nn.AvgPool2d(2), OpKind.AVERAGE_POOL),
    "adaptive to 2": (nn.AdaptiveAvgPool2d(2), OpKind.AVERAGE_POOL),
    "adaptive to 1": (nn.AdaptiveAvgPool2d(1), OpKind.GLOBAL_POOL),
    "mean kept": (lambda x: x.mean((2, 3), keepdim=True), OpKind.GLOBAL_POOL),
    "mean kept, negative": (lambda x: x.mean((-1, -2), keepdim=True), OpKind.GLOBAL_POOL),
    "mean of channels": (lambda x: x.mean(1, keepdim=True), OpKind.OTHER),
    "mean of all": (lambda x: x.mean((1, 2, 3), keepdim=True), OpKind.OTHER),
    "sum": (lambda x: x + x, OpKind.ADD),
    "sum with a number": (lambda x: x + 1.5, OpKind.OTHER),
    "product": (lambda x: x * x, OpKind.MUL),
    "product with a number": (lambda x: x * 2, OpKind.OTHER),
    "matmul": (lambda x: x @ x, OpKind.MATMUL),
    "cat": (lambda x: torch.cat([x, x], 1), OpKind.CONCAT),
    "resize": (lambda x: F.interpolate(x, scale_factor=2), OpKind.RESIZE),
    "bilinear": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), OpKind.RESIZE),
    "reshape": (lambda x: x.reshape(-1, 144), OpKind.LAYOUT),
    "flatten": (lambda x: x.flatten(1), OpKind.LAYOUT),
    "permute": (lambda x: x.permute(0, 2, 3, 1), OpKind.LAYOUT),
    "slice": (lambda x: x[:, 1:3], OpKind.LAYOUT),
    "pixel shuffle": (nn.PixelShuffle(2), OpKind.LAYOUT),
    "zero pad": (lambda x: F.pad(x, (1, 2, 0, 1)), OpKind.ZERO_PAD),
    "zero pad, stated": (lambda x: F.pad(x, (1, 2), value=0.0), OpKind.ZERO_PAD),
    "pad with one": (lambda x: F.pad(x, (1, 2), value=1.0), OpKind.OTHER),
    "reflect": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), OpKind.OTHER),
    "dropout": (nn.Dropout(), OpKind.IDENTITY),
    "sigmoid": (torch.sigmoid, OpKind.OTHER),
    "softmax": (lambda x: x.softmax(1), OpKind.OTHER),
}


@pytest.mark.parametrize("name", KINDS)
def test_kind(name: str) -> None:
    build, kind = KINDS[name]
    model = captured(build)
    assert op_kind(calls(model)[-1]) is kind


def test_what_is_no_operator_is_other() -> None:
    model = captured(nn.Linear(6, 2))
    for node in model.graph.graph.nodes:
        if node.op != "call_function":
            assert op_kind(node) is OpKind.OTHER


@pytest.mark.parametrize(
    ("function", "bounds"),
    [
        (F.relu, (0.0, None)),
        (F.relu6, (0.0, 6.0)),
        (lambda x: x.clamp(0, 3), (0.0, 3.0)),
        (lambda x: x.clamp(min=-2), (-2.0, None)),
        (lambda x: x.clamp(max=4.5), (None, 4.5)),
        (lambda x: x.clamp_min(1), (1.0, None)),
        (F.hardtanh, (-1.0, 1.0)),
        (lambda x: F.hardtanh(x, -0.5, 2.0), (-0.5, 2.0)),
    ],
)
def test_clamp_bounds(
    function: Callable[[Tensor], Tensor], bounds: tuple[float | None, float | None]
) -> None:
    (node,) = calls(captured(function))
    assert clamp_bounds(node) == bounds
    x = torch.linspace(-9, 9, 144).reshape(1, 4, 6, 6)
    assert torch.equal(function(x), x.clamp(*bounds))  # the bounds are those of the operator


def test_activations_are_what_depends_on_an_input() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.head = nn.Parameter(torch.ones(3)), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x * (self.weight * 2 + 1))

    model = captured(Scaled(), 3)
    active = activation_nodes(model.graph.graph)
    names = {node.name for node in active}
    assert names == {"x", "mul_1", "linear", "output"}
    (result,) = output_nodes(model.graph.graph)
    assert result.name == "linear"


def test_float_tensors() -> None:
    model = captured(lambda x: x.argmax(1))
    x, argmax = (node for node in model.graph.graph.nodes if node.op != "output")
    assert is_float_tensor(x)
    assert not is_float_tensor(argmax)


def test_constants_are_read_and_replaced() -> None:
    model = captured(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)), 6)
    linear = next(node for node in calls(model) if op_kind(node) is OpKind.LINEAR)
    norm = next(node for node in calls(model) if op_kind(node) is OpKind.BATCH_NORM)
    assert constant(model.graph, linear.args[0]) is None
    assert constant(model.graph, 3.0) is None
    weight = constant(model.graph, linear.args[1])
    assert weight is not None
    store(model.graph, str(linear.args[1].target), weight + 1)  # type: ignore[union-attr]
    store(model.graph, str(norm.args[3].target), torch.full((6,), 7.0))  # type: ignore[union-attr]
    assert torch.equal(constant(model.graph, linear.args[1]), weight + 1)  # type: ignore[arg-type]
    assert not constant(model.graph, linear.args[1]).requires_grad  # type: ignore[union-attr]
    assert constant(model.graph, norm.args[3]).tolist() == [7.0] * 6  # type: ignore[union-attr]


def test_foldable_layer_is_the_one_that_only_the_norm_reads() -> None:
    model = captured(nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.BatchNorm2d(5)))
    conv, first, second = calls(model)
    assert foldable_layer(model.graph, first) is conv
    assert foldable_layer(model.graph, second) is None
    assert foldable_layer(model.graph, conv) is None
