"""Pooling is rewritten without changing a value, and then means the same in every runtime."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor, nn

from edgekit.capture import CapturedModel
from edgekit.graph import op_name
from edgekit.types import InputSpec

Capture = Callable[..., CapturedModel]
Operators = Callable[[CapturedModel], list[str]]


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(2),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.AvgPool2d(3, 2, padding=1),
        nn.AvgPool2d(3, 2, padding=1, ceil_mode=True),
        nn.AvgPool2d(2, 2, padding=1, ceil_mode=True),
        nn.AvgPool2d(2, 3, padding=1, ceil_mode=True),
        nn.AvgPool2d(3, 1, padding=1, ceil_mode=True),
        nn.AvgPool2d((3, 2), (2, 3), padding=(0, 1), ceil_mode=True),
        nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
        nn.AvgPool2d(3, 2, padding=1, ceil_mode=True, count_include_pad=False),
        nn.AvgPool2d((3, 2), divisor_override=5),
        nn.AvgPool1d(3, ceil_mode=True),
        nn.AvgPool1d(4, 3, padding=2, ceil_mode=True),
        nn.AvgPool3d(2, ceil_mode=True),
    ],
    ids=lambda pool: f"{pool} {pool.ceil_mode} {pool.count_include_pad}",
)
def test_no_window_beyond_the_edge_counts_padding(captured: Capture, pool: nn.Module) -> None:
    shapes = {nn.AvgPool1d: (3, 10), nn.AvgPool3d: (3, 5, 5, 5)}
    model = captured(pool, shapes.get(type(pool), (3, 12, 11)))
    (node,) = (n for n in model.graph.graph.nodes if op_name(n).startswith("avg_pool"))
    _, _, _, padding, ceil, counted = node.args[:6]
    assert not (ceil and counted)
    assert any(padding) or not counted


class Reduced(nn.Module):
    def __init__(self, form: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        return self.form(x)


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.AdaptiveMaxPool2d(1), (3, 5, 6), ["max_pool2d"]),
        (nn.AdaptiveMaxPool2d((1, 1)), (3, 5, 6), ["max_pool2d"]),
        (nn.AdaptiveMaxPool1d(1), (3, 5), ["max_pool1d"]),
        (nn.AdaptiveMaxPool3d(1), (3, 4, 5, 6), ["max_pool3d"]),
        (Reduced(lambda x: x.amax((2, 3))), (3, 5, 6), ["max_pool2d", "flatten"]),
        (Reduced(lambda x: x.amax((-1, -2), keepdim=True)), (3, 5, 6), ["max_pool2d"]),
        (Reduced(lambda x: x.mean((2, 3))), (3, 5, 6), ["mean", "flatten"]),
        (Reduced(lambda x: x.mean(-1)), (3, 5), ["mean", "flatten"]),
        (Reduced(lambda x: x.amax(1)), (3, 5, 6), ["amax"]),
        (Reduced(lambda x: x.amax((1, 2, 3))), (3, 5, 6), ["amax"]),
        (nn.AdaptiveMaxPool2d((1, 2)), (3, 5, 6), ["adaptive_max_pool2d", ""]),
    ],
    ids=str,
)
def test_reduction_over_all_positions(
    captured: Capture,
    operators: Operators,
    module: nn.Module,
    shape: tuple[int, ...],
    expected: list[str],
) -> None:
    assert operators(captured(module, shape)) == expected


def test_positions_of_a_maximum_keep_the_pool(captured: Capture, operators: Operators) -> None:
    found = operators(captured(nn.AdaptiveMaxPool2d(1, return_indices=True), (3, 5, 6)))
    assert found[0] == "adaptive_max_pool2d"


def test_space_of_any_size_is_reduced_without_a_pool(
    captured: Capture, operators: Operators
) -> None:
    spec = InputSpec("x", (1, 3, 8, 8), variable_axes=(2, 3))
    assert operators(captured(nn.AdaptiveMaxPool2d(1), spec)) == ["amax"]
