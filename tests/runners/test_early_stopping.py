"""The estimate of MLPerf's early stopping, against sums of binomial terms in exact fractions."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest

from edgekit.runners.early_stopping import (
    CONFIDENCE,
    PERCENTILE,
    estimate,
    queries_needed,
    slow_queries_allowed,
)


def chance_of_at_most(slow: int, queries: int, percentile: Fraction) -> Fraction:
    """The chance of so few slow queries, if each is slow with the probability 1 - percentile."""
    return sum(
        (
            comb(queries, k) * (1 - percentile) ** k * percentile ** (queries - k)
            for k in range(slow + 1)
        ),
        Fraction(0),
    )


def beta_function(x: Fraction, a: int, b: int) -> Fraction:
    """I_x(a, b) for integers: the integral of t^(a-1) (1-t)^(b-1), term by term, normalized."""
    terms = (comb(b - 1, k) * Fraction((-1) ** k, a + k) * x ** (a + k) for k in range(b))
    return a * comb(a + b - 1, a) * sum(terms, Fraction(0))


@pytest.mark.parametrize("queries", [63, 64, 80, 100, 250, 500])
@pytest.mark.parametrize("percent", [50, 90])
def test_allowed_slow_queries_are_those_of_the_definition(queries: int, percent: int) -> None:
    percentile = Fraction(percent, 100)
    passing = [
        slow
        for slow in range(queries)
        if chance_of_at_most(slow, queries, percentile) <= Fraction(1, 100)
    ]
    expected = max(passing, default=0)
    found = slow_queries_allowed(queries, percent / 100, CONFIDENCE)
    assert found == (expected if expected >= 1 else None)


def test_the_chance_is_the_beta_function_that_loadgen_computes() -> None:
    # The two formulas of the module's reference, in exact arithmetic.
    percentile = Fraction(9, 10)
    for queries, slow in ((64, 1), (100, 3), (200, 12)):
        passing = queries - slow
        assert beta_function(percentile, passing, slow + 1) == chance_of_at_most(
            slow, queries, percentile
        )


def test_fewest_queries() -> None:
    assert queries_needed() == 64  # the figures that MLPerf's rules print for p90 and p99
    assert queries_needed(0.99) == 662


def test_long_runs_do_not_underflow() -> None:
    allowed = slow_queries_allowed(100_000, PERCENTILE, CONFIDENCE)
    # Normal approximation: 10,000 less 2.326 deviations of 94.9, to within a few queries.
    assert allowed == pytest.approx(10_000 - 2.326 * 94.87, abs=5)


def test_estimate_is_the_slowest_query_that_is_not_discarded() -> None:
    times = np.random.default_rng(0).permutation(np.arange(1, 1001)) * 1_000_000
    found = estimate(times.tolist())
    allowed = slow_queries_allowed(1000, PERCENTILE, CONFIDENCE)
    assert allowed is not None
    assert found.discarded == allowed - 1
    assert found.estimate_ms == 1000 - allowed + 1
    assert sum(time > found.estimate_ms * 1e6 for time in times) == found.discarded
    assert found.measured_ms == 901  # LoadGen's element 900 of 0 to 999
    assert found.estimate_ms > found.measured_ms


def test_short_run_has_no_estimate() -> None:
    found = estimate([1_000_000] * 63)
    assert (found.estimate_ms, found.discarded, found.queries_needed) == (None, None, 64)
    assert estimate([1_000_000] * 64).estimate_ms == 1.0


def test_estimate_is_rarely_below_the_true_percentile() -> None:
    rng = np.random.default_rng(1)
    truth = -np.log(1 - PERCENTILE)  # of an exponential distribution
    runs = (rng.exponential(size=200) for _ in range(2000))
    below = sum(
        (estimate((run * 1e6).astype(int).tolist()).estimate_ms or 0) < truth for run in runs
    )
    # At most 1 % of 2000, and three deviations of a binomial count of 20.
    assert below <= 20 + 3 * 20**0.5
