"""Intervals of rates."""

from __future__ import annotations

import math
from collections.abc import Callable

_STEPS = 60  # halvings: far below what a rate is shown with


def rate_interval(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact interval of a rate: Clopper and Pearson, Biometrika 26 (1934)."""
    tail = (1 - confidence) / 2
    low = high = 0.0
    if count > 0:
        low = _root(lambda rate: 1 - _below(count - 1, total, rate) - tail)
    high = 1.0 if count == total else _root(lambda rate: tail - _below(count, total, rate))
    return low, high


def _root(rising: Callable[[float], float]) -> float:
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2


def _below(count: int, total: int, rate: float) -> float:
    """Return the probability of at most ``count`` of ``total``."""
    if rate in (0.0, 1.0):
        return float(rate == 0.0 or count >= total)
    logs = (
        math.lgamma(total + 1)
        - math.lgamma(k + 1)
        - math.lgamma(total - k + 1)
        + k * math.log(rate)
        + (total - k) * math.log1p(-rate)
        for k in range(count + 1)
    )
    return min(sum(map(math.exp, logs)), 1.0)
