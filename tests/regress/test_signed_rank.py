"""The exact signed-rank interval against printed tables, enumeration and inversion."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from edgekit.regress.signed_rank import critical_rank, shift_interval, walsh_averages


# Wilcoxon and Wilcox, "Some Rapid Approximate Statistical Procedures" (1964): the largest statistic
# that is significant at a one-sided error, for each number of values.
@pytest.mark.parametrize(
    ("count", "error", "statistic"),
    [
        (6, 0.025, 0),
        (7, 0.025, 2),
        (8, 0.025, 3),
        (9, 0.025, 5),
        (10, 0.025, 8),
        (15, 0.025, 25),
        (20, 0.025, 52),
        (25, 0.025, 89),
        (7, 0.01, 0),
        (8, 0.01, 1),
        (10, 0.01, 5),
        (15, 0.01, 19),
        (20, 0.01, 43),
        (8, 0.005, 0),
        (10, 0.005, 3),
        (20, 0.005, 37),
    ],
)
def test_critical_values_of_the_printed_table(count: int, error: float, statistic: int) -> None:
    rank, attained = critical_rank(count, error)
    assert rank == statistic + 1  # the k-th average excludes what has a statistic below k
    assert 0 < attained <= error


def test_attained_error_of_a_known_tail() -> None:
    # 25 of the 1024 subsets of the ranks 1 to 10 have a sum of at most 8.
    assert critical_rank(10, 0.025) == (9, 25 / 1024)


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_error_is_that_of_all_patterns_of_signs(count: int) -> None:
    ranks = range(1, count + 1)
    sums = [
        sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign)
        for signs in itertools.product((False, True), repeat=count)
    ]
    for level in (0.001, 0.01, 0.05, 0.3):
        rank, attained = critical_rank(count, level)
        below = [sum(s <= w for s in sums) / len(sums) for w in range(max(sums) + 1)]
        assert rank == sum(share <= level for share in below)
        assert attained == pytest.approx(below[rank - 1] if rank else 0.0, abs=1e-15)


def test_too_few_values_have_no_bounds() -> None:
    found = shift_interval([1.0, 2.0, 4.0], 0.01)
    assert (found.low, found.high, found.level) == (-math.inf, math.inf, 0.0)
    assert found.value == 2.25  # median of 1, 1.5, 2, 2.5, 3, 4


def test_walsh_averages_by_hand() -> None:
    assert walsh_averages([5.0, 1.0, 2.0]).tolist() == [1.0, 1.5, 2.0, 3.0, 3.5, 5.0]


def test_bounds_are_where_the_test_begins_to_reject() -> None:
    values = np.random.default_rng(0).standard_t(2, 12)
    found = shift_interval(values.tolist(), 0.01)
    rank, _ = critical_rank(12, 0.01)

    def statistics(centre: float) -> tuple[float, float]:
        shifted = values - centre
        ranks = np.argsort(np.argsort(np.abs(shifted))) + 1
        return ranks[shifted < 0].sum(), ranks[shifted > 0].sum()

    step = 1e-9
    below, above = (statistics(found.low + sign * step)[0] for sign in (-1, 1))
    assert below < rank <= above
    below, above = (statistics(found.high + sign * step)[1] for sign in (-1, 1))
    assert above < rank <= below
    assert found.low < found.value < found.high


def test_interval_moves_with_the_values() -> None:
    values = np.random.default_rng(1).normal(0, 1, 15)
    plain = shift_interval(values.tolist(), 0.01)
    moved = shift_interval((values + 3).tolist(), 0.01)
    mirrored = shift_interval((-values).tolist(), 0.01)
    assert moved.low == pytest.approx(plain.low + 3)
    assert (mirrored.low, mirrored.high) == pytest.approx((-plain.high, -plain.low))


def test_a_fifth_of_wild_values_hardly_moves_the_estimate() -> None:
    values = np.random.default_rng(2).normal(0, 1, 20)
    wild = np.where(np.arange(20) < 4, 1e6, values)
    # The estimate breaks down at 29 % of wild values; a mean would be at 200 000.
    assert abs(shift_interval(wild.tolist(), 0.01).value) < 2
