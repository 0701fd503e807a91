"""Distribution-free interval of a median shift, by Wilcoxon's signed-rank statistic.

F. Wilcoxon, "Individual comparisons by ranking methods", Biometrics Bulletin 1 (1945), and
J. L. Hodges, E. L. Lehmann, "Estimates of location based on rank tests", Annals of Mathematical
Statistics 34 (1963). The null distribution is computed exactly, not by its normal limit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its bounds, which are infinite where there are too few values.

    Attributes:
        value: Hodges-Lehmann estimate.
        low, high: bounds; each is missed with a probability of at most ``level``.
        level: the one-sided error that the bounds really have, at most the one asked for.
    """

    value: float
    low: float
    high: float
    level: float


def shift_interval(values: Sequence[float], level: float) -> Interval:
    """Estimate the centre of symmetry of some values.

    The bounds hold where each value lies above or below the true centre like the fall of a fair
    coin of its own, whatever the sizes of the deviations are and however these depend on one
    another.

    Args:
        values: at least one.
        level: largest one-sided error.
    """
    averages = walsh_averages(values)
    rank, attained = critical_rank(len(values), level)
    value = float(np.median(averages))
    if rank == 0:
        return Interval(value, -math.inf, math.inf, 0.0)
    return Interval(value, float(averages[rank - 1]), float(averages[-rank]), attained)


def walsh_averages(values: Sequence[float]) -> np.ndarray:
    """Return the averages of all pairs, each value with itself among them, in rising order."""
    array = np.asarray(values, np.float64)
    first, second = np.triu_indices(len(array))
    averages: np.ndarray = np.sort((array[first] + array[second]) / 2)
    return averages


def critical_rank(count: int, level: float) -> tuple[int, float]:
    """Return which Walsh averages bound the centre: the k-th lowest and the k-th highest.

    Args:
        count: number of values.
        level: largest one-sided error.

    Returns:
        ``k`` and the error that it has; ``(0, 0.0)`` where no average is far enough out.
    """
    tail = _cumulative(count)
    # The k-th lowest average exceeds the centre exactly where the statistic is below k.
    rank = int(np.searchsorted(tail, level, side="right"))
    return (rank, float(tail[rank - 1])) if rank else (0, 0.0)


@lru_cache(maxsize=256)
def _cumulative(count: int) -> np.ndarray:
    """Return P(W <= w) for w = 0, 1, ...: sums of a subset of the ranks, each in it by a coin."""
    mass = np.zeros(count * (count + 1) // 2 + 1)
    mass[0] = 1.0
    for rank in range(1, count + 1):
        shifted = np.zeros_like(mass)
        shifted[rank:] = mass[:-rank]
        mass = (mass + shifted) / 2
    return np.cumsum(mass)
