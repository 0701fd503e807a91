"""Error rates of the sequential interval on simulated noise, and what follows from an interval.

The noise is what machines do: heavy tails, bursts that outlast several rounds, a slow drift. Seeds
are fixed, so every rate below is one number for ever.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from edgekit.regress.sequential import ERROR_RATE, Look, Looks, Verdict
from edgekit.regress.signed_rank import shift_interval

LIMIT = 1.05
ROUNDS = 35  # what 60 seconds hold


def machine(rng: np.random.Generator, spread: float) -> np.ndarray:
    """Logarithms of the latencies of two slots in each round, however the machine was."""
    count = 2 * ROUNDS
    wander = np.zeros(count)
    for slot in range(1, count):  # autocorrelated over some ten slots, with heavy tails
        wander[slot] = 0.9 * wander[slot - 1] + spread * rng.standard_t(3)
    drift = np.linspace(0, rng.normal(0, 0.3), count)
    burst = 0.5 * (rng.random(count) < 0.05)
    return (wander + drift + burst).reshape(ROUNDS, 2)


def log_ratios(rng: np.random.Generator, spread: float, ratio: float) -> np.ndarray:
    """Rounds whose order of base and head a coin decides."""
    slots = machine(rng, spread)
    sign = rng.choice((-1, 1), ROUNDS)
    found: np.ndarray = sign * (slots[:, 1] - slots[:, 0]) + math.log(ratio)
    return found


def judge(values: np.ndarray) -> Verdict:
    """Look as planned while the rounds come in."""
    looks = Looks(ERROR_RATE)
    for rounds in range(1, ROUNDS):
        if looks.due(rounds):
            verdict = looks.take(values[:rounds].tolist(), rounds / ROUNDS).decide(LIMIT)
            if verdict is not None:
                return verdict
    return looks.take(values.tolist(), 1.0, last=True).conclude(LIMIT)


def rate(verdict: Verdict, ratio: float, trials: int, spread: float = 0.02) -> float:
    rng = np.random.default_rng(0)
    return sum(judge(log_ratios(rng, spread, ratio)) is verdict for _ in range(trials)) / trials


def test_false_alarms_at_the_very_limit_are_as_rare_as_promised() -> None:
    # Three standard deviations of a rate of 1 % in 1500 trials are 0.8 %.
    assert rate(Verdict.REGRESSION, LIMIT, 1500) <= ERROR_RATE + 0.008


def test_what_is_beyond_the_limit_passes_as_rarely() -> None:
    assert rate(Verdict.PASS, LIMIT, 1500) <= ERROR_RATE + 0.008


def test_equal_artifacts_never_alarm() -> None:
    # 5 % away from the limit: none in 1000, of which the 97.5 % bound is 0.4 %.
    assert rate(Verdict.REGRESSION, 1.0, 1000) == 0.0


@pytest.mark.parametrize("ratio", [1.1, 1.2])
def test_slowdowns_are_found(ratio: float) -> None:
    assert rate(Verdict.REGRESSION, ratio, 300, spread=0.01) >= 0.95


def test_improvements_are_found() -> None:
    assert rate(Verdict.IMPROVEMENT, 1 / 1.1, 300, spread=0.01) >= 0.95


def test_much_noise_ends_without_a_verdict() -> None:
    assert rate(Verdict.INCONCLUSIVE, 1.0, 200, spread=0.3) >= 0.95


def test_looking_often_without_a_budget_of_errors_would_alarm_too_often() -> None:
    # The control: the same interval at the full rate after every round. It shows that the
    # simulation can tell, and what the spending is for.
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(300):
        values = log_ratios(rng, 0.02, LIMIT).tolist()
        alarms += any(
            shift_interval(values[:rounds], ERROR_RATE).low > math.log(LIMIT)
            for rounds in range(8, ROUNDS + 1)
        )
    assert alarms / 300 > 2 * ERROR_RATE


def test_order_without_coins_would_alarm_by_drift() -> None:
    # The control for the coins: base always first, while the machine slows down.
    values = np.full(ROUNDS, 0.06) + np.random.default_rng(0).normal(0, 0.01, ROUNDS)
    assert judge(values) is Verdict.REGRESSION
    sign = np.random.default_rng(1).choice((-1, 1), ROUNDS)
    assert judge(sign * values) is not Verdict.REGRESSION


@pytest.mark.parametrize("fractions", [[0.2, 0.5, 0.9], [0.5, 0.5, 0.5], [0.99], [0.1, 1.7]])
def test_errors_of_all_looks_stay_within_the_rate(fractions: list[float]) -> None:
    looks = Looks(0.01)
    values = np.random.default_rng(0).normal(0, 1, 60).tolist()
    for number, fraction in enumerate(fractions):
        looks.take(values[: 10 + 10 * number], fraction)
    looks.take(values, 1.0, last=True)
    spent = [look.level for look in looks.taken]
    assert 0.008 < sum(spent) <= 0.01  # with 60 values the steps of the distribution are fine
    assert all(level >= 0 for level in spent)


def test_no_later_look_widens_the_interval() -> None:
    looks = Looks(0.01)
    values = np.random.default_rng(0).normal(0, 1, 20).tolist()
    early = looks.take(values, 0.99)
    last = looks.take(values, 1.0, last=True)  # of the rate next to nothing is left for it
    assert last.level < early.level
    assert (last.low, last.high) == (early.low, early.high)
    assert last.low > 0


def test_looks_are_planned_apart() -> None:
    looks, planned = Looks(0.01), []
    for rounds in range(1, 70):
        if looks.due(rounds):
            planned.append(rounds)
            looks.take([0.0] * rounds, 0.1)
    assert planned == [8, 12, 16, 23, 32, 46, 64]


def bounds() -> Iterator[tuple[float, float, float, Verdict | None, Verdict]]:
    """Value, low, high; whether sampling stops there, and the verdict if it must."""
    yield 1.10, 1.06, 1.15, Verdict.REGRESSION, Verdict.REGRESSION
    yield 1.10, 1.04, 1.15, None, Verdict.INCONCLUSIVE
    yield 1.00, 0.96, 1.04, Verdict.PASS, Verdict.PASS
    yield 1.03, 1.02, 1.04, Verdict.PASS, Verdict.PASS  # slower, and within the tolerance
    yield 1.00, 0.90, 1.06, None, Verdict.INCONCLUSIVE
    yield 0.80, 0.70, 0.90, Verdict.IMPROVEMENT, Verdict.IMPROVEMENT
    yield 0.94, 0.90, 1.00, None, Verdict.PASS  # may yet turn out to be an improvement
    yield 1.00, 0.0, math.inf, None, Verdict.INCONCLUSIVE


@pytest.mark.parametrize(("value", "low", "high", "early", "final"), list(bounds()))
def test_verdict_follows_from_the_interval(
    value: float, low: float, high: float, early: Verdict | None, final: Verdict
) -> None:
    look = Look(10, 0.5, value, low, high, 0.01)
    assert look.decide(LIMIT) is early
    assert look.conclude(LIMIT) is final


def test_bounds_that_there_are_not_are_null_in_the_document() -> None:
    document = Looks(0.01).take([0.1, 0.2], 0.1).to_dict()
    assert (document["low"], document["high"], document["level"]) == (None, None, 0.0)
