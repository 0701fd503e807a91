"""What a user types as a budget."""

from __future__ import annotations

import pytest

from edgekit.budget import Budget, BudgetKind, check_budget, parse_budget
from edgekit.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "kind", "value"),
    [
        ({"max_drop": 1.5}, BudgetKind.DROP, 1.5),
        ({"max_size": "900kB"}, BudgetKind.SIZE, 900e3),
        ({"max_size": "1.5 MB"}, BudgetKind.SIZE, 1.5e6),
        ({"max_size": "2KiB"}, BudgetKind.SIZE, 2048.0),
        ({"max_size": ".2x"}, BudgetKind.SHARE, 0.2),
        ({"max_latency": "5ms"}, BudgetKind.LATENCY, 5.0),
        ({"max_latency": "800us"}, BudgetKind.LATENCY, 0.8),
        ({"max_latency": "0.5s"}, BudgetKind.LATENCY, 500.0),
    ],
)
def test_forms(options: dict[str, object], kind: BudgetKind, value: float) -> None:
    found = parse_budget(**options)  # type: ignore[arg-type]
    assert found is not None
    assert found.kind is kind
    assert found.value == pytest.approx(value)


def test_nothing_given() -> None:
    assert parse_budget() is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_size": "12"}, "examples: 900kB"),
        ({"max_size": "x"}, "examples: 900kB"),
        ({"max_size": "3 apples"}, "examples: 900kB"),
        ({"max_latency": "5"}, "examples: 5ms"),
        ({"max_latency": "-5ms"}, "examples: 5ms"),
        ({"max_drop": 0.0}, "more than 0"),
        ({"max_drop": float("nan")}, "more than 0"),
        ({"max_drop": 1.0, "max_size": "1MB"}, "give one"),
    ],
)
def test_bad_forms(options: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_budget(**options)  # type: ignore[arg-type]
    assert told in f"{caught.value.message} {caught.value.hint}"


def test_a_budget_needs_the_mixed_scheme() -> None:
    budget = Budget(BudgetKind.DROP, 1.0)
    check_budget("mixed", budget)
    check_budget("w4a8", None)
    with pytest.raises(ConfigError, match="w4a8"):
        check_budget("w4a8", budget)
