"""Bias shifts against the mean output error that random data really shows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from edgekit.capture import capture
from edgekit.graph import WEIGHTED, constant, op_kind
from edgekit.passes.bias_correction import bias_shift
from edgekit.types import InputSpec

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv": (lambda: nn.Conv2d(6, 4, 3), (6, 12, 12)),
    "conv strided": (lambda: nn.Conv2d(6, 4, 3, stride=2), (6, 13, 13)),
    "conv groups": (lambda: nn.Conv2d(6, 9, 3, groups=3), (6, 12, 12)),
    "conv depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6), (6, 12, 12)),
    "conv1d": (lambda: nn.Conv1d(6, 4, 3), (6, 40)),
    "linear": (lambda: nn.Linear(6, 4), (6,)),
    "linear tokens": (lambda: nn.Linear(6, 4), (5, 6)),
    # kernel = stride: every output position meets exactly one weight, so there are no borders
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, 2, stride=2), (6, 6, 6)),
    "transposed groups": (lambda: nn.ConvTranspose2d(6, 9, 2, stride=2, groups=3), (6, 6, 6)),
}


def layer_of(module: nn.Module, shape: tuple[int, ...]) -> tuple[fx.GraphModule, fx.Node]:
    graph = capture(module.eval(), [InputSpec("x", (1, *shape))]).graph
    return graph, next(node for node in graph.graph.nodes if op_kind(node) in WEIGHTED)


def per_channel_mean(y: Tensor, axis: int) -> Tensor:
    return y.double().movedim(axis, 0).flatten(1).mean(1)


@pytest.mark.parametrize("name", LAYERS)
def test_shift_cancels_the_measured_mean_error(name: str) -> None:
    build, shape = LAYERS[name]
    torch.manual_seed(0)
    module = build()
    graph, node = layer_of(module, shape)
    weight = constant(graph, node.args[1])
    assert weight is not None
    weight = weight.clone()  # the graph holds the module's own parameter
    rough = torch.round(weight * 16) / 16  # a visible rounding error
    axis = -1 if isinstance(module, nn.Linear) else 1
    means = torch.linspace(0.5, 3.0, shape[axis] if axis == -1 else shape[0])
    x = torch.randn(4000, *shape) + means.reshape([-1] + [1] * (len(shape) - 1 if axis == 1 else 0))
    with torch.no_grad():
        exact = module(x)
        module.weight.copy_(rough)  # type: ignore[operator, union-attr]
        error = per_channel_mean(module(x).double() - exact.double(), axis)
    shift = bias_shift(node, rough - weight, per_channel_mean(x, axis).float()).double()
    # Each weight's error meets its own window of positions, while the mean is over all of them: by
    # chance the two differ by 1 / sqrt(4000 samples times dozens of positions) times |error|
    scale = float((rough - weight).abs().sum() / len(shift))
    assert torch.allclose(-shift, error, atol=2e-2 * scale, rtol=0)
    # and the test sees the difference between a correction and none
    assert float((shift + error).norm()) < 0.05 * float(error.norm())


def test_shift_of_a_linear_layer_by_hand() -> None:
    _, node = layer_of(nn.Linear(2, 2), (2,))
    error = torch.tensor([[0.5, -0.25], [0.0, 1.0]])
    assert bias_shift(node, error, torch.tensor([2.0, 4.0])).tolist() == [0.0, -4.0]


def test_shift_of_a_grouped_convolution_by_hand() -> None:
    _, node = layer_of(nn.Conv2d(4, 2, (1, 2), groups=2), (4, 3, 3))
    error = torch.zeros(2, 2, 1, 2)
    error[0, 1] = torch.tensor([0.5, 0.25])  # output 0 reads inputs 0 and 1
    error[1, 0] = torch.tensor([1.0, 0.0])  # output 1 reads inputs 2 and 3
    assert bias_shift(node, error, torch.tensor([9.0, 2.0, 3.0, 9.0])).tolist() == [-1.5, -3.0]


def test_no_error_means_no_shift() -> None:
    _, node = layer_of(nn.Conv2d(3, 2, 3), (3, 5, 5))
    assert bias_shift(node, torch.zeros(2, 3, 3, 3), torch.ones(3)).tolist() == [0.0, 0.0]
