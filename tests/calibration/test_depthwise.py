"""The gradient of a depthwise convolution against that of torch."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.calibration._depthwise import depthwise_conv2d, is_depthwise
from edgekit.calibration._teacher import Teacher
from edgekit.capture import capture
from edgekit.graph import OpKind, constant, op_kind
from edgekit.types import InputSpec

CASES = [
    # size, kernel, stride, padding, dilation
    *itertools.product(
        [(9, 9), (8, 11)], [(3, 3), (5, 5), (2, 3)], [(1, 1), (2, 2)], [(0, 0), (1, 1)], [(1, 1)]
    ),
    ((9, 10), (3, 3), (2, 1), (1, 0), (1, 1)),
    ((13, 12), (3, 3), (1, 1), (2, 2), (2, 2)),
    ((13, 12), (3, 3), (2, 3), (2, 1), (2, 3)),
    ((7, 7), (3, 3), (2, 2), (4, 4), (1, 1)),  # more padding than kernel
    ((10, 10), (1, 1), (3, 3), (0, 0), (1, 1)),  # pixels that nothing reads
    ((12, 12), (7, 7), (4, 4), (3, 3), (1, 1)),
    ((3, 3), (3, 3), (1, 1), (0, 0), (1, 1)),  # one position
]


@pytest.mark.parametrize("bias", [True, False])
def test_gradient_is_that_of_torch(bias: bool) -> None:
    draws = torch.Generator().manual_seed(0)
    for size, kernel, stride, padding, dilation in CASES:
        module = nn.Conv2d(
            4, 4, kernel, stride, padding, dilation=dilation, groups=4, bias=bias
        ).eval()
        graph = capture(module, [InputSpec("x", (1, 4, *size))]).graph
        (node,) = (n for n in graph.graph.nodes if op_kind(n) is OpKind.CONV)
        weight = constant(graph, node.args[1])
        assert weight is not None
        assert is_depthwise(node, weight)
        x = torch.randn(2, 4, *size, generator=draws).double()
        parameters = [p.detach().double() for p in module.parameters()]
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        got = depthwise_conv2d(node, (ours, *parameters))
        expected = F.conv2d(
            theirs, *parameters, stride=stride, padding=padding, dilation=dilation, groups=4
        )
        assert torch.equal(got, expected)
        grad = torch.randn(expected.shape, generator=draws).double()
        got.backward(grad)
        expected.backward(grad)
        assert ours.grad is not None
        # sums of up to 49 products of order one in float64, in another order
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("module", "size"),
    [
        (nn.Conv2d(4, 8, 3, groups=4), (1, 4, 8, 8)),  # two outputs for each channel
        (nn.Conv2d(4, 4, 3, groups=2), (1, 4, 8, 8)),
        (nn.Conv2d(4, 4, 3, groups=4, padding="same"), (1, 4, 8, 8)),
        (nn.Conv2d(1, 1, 3), (1, 1, 8, 8)),
        (nn.Conv1d(4, 4, 3, groups=4), (1, 4, 8)),
    ],
)
def test_other_convolutions_are_left_to_torch(module: nn.Module, size: tuple[int, ...]) -> None:
    graph = capture(module.eval(), [InputSpec("x", size)]).graph
    for node in graph.graph.nodes:
        if op_kind(node) is OpKind.CONV:
            weight = constant(graph, node.args[1])
            assert weight is not None
            assert not is_depthwise(node, weight)


class Mixed(nn.Module):
    """Depthwise convolutions as inverted residuals have them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.down = nn.Conv2d(4, 4, 5, stride=2, padding=2, groups=4, bias=False)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.down(F.relu6(x + self.inner(x))))


def test_gradient_through_a_network() -> None:
    torch.manual_seed(0)
    module = Mixed().eval()
    x = torch.randn(3, 4, 9, 10)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    got = Teacher(capture(module, [InputSpec("x", (1, 4, 9, 10))]))(ours).outputs[0]
    expected = module(theirs)
    got.square().sum().backward()
    expected.square().sum().backward()
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)  # float32 sums
