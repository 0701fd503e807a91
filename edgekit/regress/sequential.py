"""When to stop measuring, without raising the rate of false alarms.

The rate is divided over a few planned looks by a spending function of the elapsed part of the
budget: K. K. G. Lan, D. L. DeMets, "Discrete sequential boundaries for clinical trials",
Biometrika 70 (1983), with the power family of K. Kim, D. L. DeMets, Biometrika 74 (1987). The
looks' errors are added up (Bonferroni), so that nothing is assumed about how they depend on one
another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from edgekit.regress.signed_rank import shift_interval

ERROR_RATE = 0.01
"""Largest probability that a run calls regression what is within the tolerance."""
_SPENDING_POWER = 2  # little is spent early, when there is little to see
_FIRST_LOOK = 8  # with fewer rounds no interval has an error of at most half a percent


class Verdict(str, Enum):
    """What a comparison came to."""

    PASS = "pass"
    REGRESSION = "regression"
    IMPROVEMENT = "improvement"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Look:
    """What was known at one look.

    Attributes:
        rounds: how many there were.
        fraction: elapsed part of the budget.
        value: latency of head divided by that of base.
        low, high: bounds of its interval, which no later look can widen; 0 and infinite where there
            are too few rounds.
        level: one-sided error that was spent on this look.
    """

    rounds: int
    fraction: float
    value: float
    low: float
    high: float
    level: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; a bound that there is not is ``None``."""
        return {
            "rounds": self.rounds,
            "fraction": self.fraction,
            "value": self.value,
            "low": self.low if self.low > 0 else None,
            "high": self.high if math.isfinite(self.high) else None,
            "level": self.level,
        }

    def decide(self, limit: float) -> Verdict | None:
        """Return the verdict with which sampling may stop here, if there is one.

        Args:
            limit: ratio up to which head passes, above 1.
        """
        if self.low > limit:
            return Verdict.REGRESSION
        if self.high < 1 / limit:
            return Verdict.IMPROVEMENT
        # What looks like an improvement is worth the rest of the budget.
        if self.high < limit and self.value >= 1 / limit:
            return Verdict.PASS
        return None

    def conclude(self, limit: float) -> Verdict:
        """Return the verdict where sampling is over.

        Args:
            limit: ratio up to which head passes, above 1.
        """
        verdict = self.decide(limit)
        if verdict is None:
            return Verdict.PASS if self.high < limit else Verdict.INCONCLUSIVE
        return verdict


class Looks:
    """The looks of one comparison, all of whose intervals hold together.

    Args:
        error_rate: probability that any of the lower bounds is above the truth, at most; the same
            for the upper bounds.
    """

    def __init__(self, error_rate: float) -> None:
        self.taken: list[Look] = []
        self._error_rate = error_rate
        self._spent = 0.0
        self._planned = 0

    def due(self, rounds: int) -> bool:
        """Whether a look is planned after so many rounds: each has sqrt(2) times as many."""
        return rounds >= _FIRST_LOOK * 2 ** (self._planned / 2)

    def take(self, log_ratios: Sequence[float], fraction: float, *, last: bool = False) -> Look:
        """Estimate the ratio from the rounds so far.

        Args:
            log_ratios: natural logarithm of head / base, one for each round.
            fraction: elapsed part of the budget, 0 to 1.
            last: there will be no other look, so all that is left of the rate is spent.
        """
        part = 1.0 if last else min(fraction, 1.0) ** _SPENDING_POWER
        found = shift_interval(log_ratios, max(self._error_rate * part - self._spent, 0.0))
        self._spent += found.level
        while self.due(len(log_ratios)):
            self._planned += 1
        # The intervals hold together, so what one has excluded stays excluded.
        low = max([math.exp(found.low), *(look.low for look in self.taken)])
        high = min([_exp(found.high), *(look.high for look in self.taken)])
        value = min(max(math.exp(found.value), low), high)
        look = Look(len(log_ratios), fraction, value, low, high, found.level)
        self.taken.append(look)
        return look


def _exp(value: float) -> float:
    return math.exp(value) if math.isfinite(value) else math.inf
