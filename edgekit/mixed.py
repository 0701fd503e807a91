"""Mixed precision: which layers take narrow weights, or stay float, under a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.budget import Budget, BudgetKind
from edgekit.errors import ConfigError
from edgekit.sensitivity import LayerCost, Sensitivity, expected_drop
from edgekit.types import Task

NARROW = 4
_OVERHEAD = 256
"""Bytes that a layer with narrow weights takes beside them: a cast, and names."""


@dataclass(frozen=True, slots=True)
class Point:
    """One allocation: its narrow layers, and what is expected of it.

    Attributes:
        narrow: names of the layers, those that save most for their error first.
        size_bytes: size of the model file.
        drop: points of accuracy lost (:func:`edgekit.sensitivity.expected_drop`).
    """

    narrow: tuple[str, ...]
    size_bytes: int
    drop: float


def frontier(sensitivity: Sensitivity, task: Task, wide_bytes: int) -> tuple[Point, ...]:
    """Return allocations from all layers wide to all narrow, each one layer narrower.

    Layers come in order of the error that they add for each byte saved, so no other set of layers
    saves as much as one of these points with less error.

    Args:
        sensitivity: costs of the layers.
        task: what the first output means.
        wide_bytes: size of the file with 8 bits everywhere.
    """
    able = [layer for layer in sensitivity.layers if _saved(layer) > 0]
    points = [Point((), wide_bytes, expected_drop(task, sensitivity.base))]
    size, error = wide_bytes, sensitivity.base
    for layer in sorted(able, key=lambda layer: _added(layer) / _saved(layer)):
        size -= _saved(layer)
        error += _added(layer)
        points.append(Point((*points[-1].narrow, layer.name), size, expected_drop(task, error)))
    return tuple(points)


def within_drop(points: Sequence[Point], budget: Budget) -> Point:
    """Return the smallest allocation that is expected to lose no more than the budget.

    Raises:
        ConfigError: 8 bits everywhere lose more.
    """
    fitting = [point for point in points if point.drop <= budget.value]
    if not fitting:
        least = points[0].drop
        raise ConfigError(
            f"{budget}: 8 bits in all layers are expected to cost {least:.2g} points already",
            f"nearest possible: --max-drop {_up(least)}; --scheme w8a16 costs less",
        )
    return fitting[-1]


def within_size(
    points: Sequence[Point],
    sensitivity: Sensitivity,
    task: Task,
    budget: Budget,
    float_bytes: int,
) -> Point:
    """Return the allocation of least error that is no larger than the budget.

    Raises:
        ConfigError: narrow weights in all layers that can have them take more.
    """
    most = budget.value * (float_bytes if budget.kind is BudgetKind.SHARE else 1)
    found = next((point for point in points if point.size_bytes <= most), None)
    if found is not None:
        return _without_needless(found, sensitivity, task, most)
    last = points[-1]
    nearest = f"{_up(last.size_bytes / 1e3)}kB"
    if budget.kind is BudgetKind.SHARE:
        nearest = f"{_up(last.size_bytes / float_bytes)}x"
    named = f", '{last.narrow[0]}' to '{last.narrow[-1]}'" if last.narrow else ""
    raise ConfigError(
        f"{budget}: with {NARROW} bits in all {len(last.narrow)} layers that can have them{named}, "
        f"the file takes {last.size_bytes} bytes, more than {most:.0f}",
        f"nearest possible: --max-size {nearest}",
    )


def _without_needless(point: Point, sensitivity: Sensitivity, task: Task, most: float) -> Point:
    """Widen layers again that the size does not need: the last one may save more than it must."""
    layers = {layer.name: layer for layer in sensitivity.layers}
    narrow, size = list(point.narrow), point.size_bytes
    for name in sorted(point.narrow, key=lambda name: -_added(layers[name])):
        if size + _saved(layers[name]) <= most:
            narrow.remove(name)
            size += _saved(layers[name])
    error = sensitivity.base + sum(_added(layers[name]) for name in narrow)
    return Point(tuple(narrow), size, expected_drop(task, error))


def float_order(sensitivity: Sensitivity) -> tuple[str, ...]:
    """Return the layers in the order in which time is best spent on them in float.

    That is by the error that integers make in them for each multiplication.
    """
    able = [layer for layer in sensitivity.layers if layer.work > 0]
    return tuple(layer.name for layer in sorted(able, key=lambda layer: -layer.wide / layer.work))


def _added(layer: LayerCost) -> float:
    return layer.narrow or 0.0


def _saved(layer: LayerCost) -> int:
    """Return the bytes that narrow weights save; 0 where the layer may not have them."""
    if layer.narrow is None:
        return 0
    return max(layer.values * (8 - NARROW) // 8 - _OVERHEAD, 0)


def _up(value: float) -> str:
    """Return a number a little above ``value`` that a user can type."""
    return f"{value * 1.01:.3g}"
