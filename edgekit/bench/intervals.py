"""Estimates over blocks. Runs inside a block are correlated, so blocks are what is resampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 5000
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with the bounds of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Return plain JSON values."""
        return {"value": self.value, "low": self.low, "high": self.high}


def median_over_blocks(values: Sequence[float]) -> Estimate:
    """Estimate the median of one figure of each block."""
    return _bootstrap(np.asarray(values, np.float64), _median)


def mean_over_blocks(values: Sequence[float]) -> Estimate:
    """Estimate the mean of one figure of each block."""
    return _bootstrap(np.asarray(values, np.float64), _mean)


def ratio_over_blocks(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Estimate the median ratio of two figures that were measured in pairs, round by round.

    The two halves of a pair ran one after the other, so what slowed both cancels.
    """
    pairs = zip(numerators, denominators, strict=True)
    return median_over_blocks([above / below for above, below in pairs])


def _bootstrap(values: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> Estimate:
    generator = np.random.default_rng(0)
    resampled = statistic(generator.choice(values, (_RESAMPLES, len(values))))
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(resampled, (tail, 1 - tail))
    value = float(statistic(values[None])[0])
    # The mean of few skewed blocks can fall outside by a hair; an estimate is in its interval.
    return Estimate(value, min(float(low), value), max(float(high), value))


def _median(rows: np.ndarray) -> np.ndarray:
    medians: np.ndarray = np.median(rows, axis=1)
    return medians


def _mean(rows: np.ndarray) -> np.ndarray:
    means: np.ndarray = rows.mean(axis=1)
    return means
