"""The benchmark of the gate: its intervals, its slowdown and its resampling; no live trial."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.regress.settings import Settings


@pytest.fixture
def benchmark(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A module by name; benchmarks are run from the checkout and not installed."""
    monkeypatch.syspath_prepend(str(root))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


# Clopper and Pearson's limits, as printed in tables of exact binomial intervals; where nothing was
# found, the upper one is 1 - 0.025 ** (1 / n).
@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.3085),
        (1, 10, 0.0025, 0.4450),
        (5, 10, 0.1871, 0.8129),
        (10, 10, 0.6915, 1.0),
        (5, 100, 0.0164, 0.1128),
        (0, 2000, 0.0, 0.001843),
    ],
)
def test_exact_interval_of_a_rate(
    benchmark: Callable[[str], Any], count: int, total: int, low: float, high: float
) -> None:
    found = benchmark("_rates").rate_interval(count, total)
    assert found == pytest.approx((low, high), abs=5e-5)  # the tables have four places


def trials(module: Any, spread: float, slowed_by: float = 0.0, count: int = 10) -> list[Any]:
    rng = np.random.default_rng(0)

    def a_round() -> dict[str, Any]:
        base = 2.0 * math.exp(rng.normal(0, 0.2))
        ratio = rng.normal(0, spread)
        return {
            "log_ratio": ratio,
            "base_ms": base,
            "head_ms": base * math.exp(ratio),
            "base_p50_ms": base,
            "head_p50_ms": base * math.exp(ratio),
            "turns": 20,
            "seconds": 1.5,
        }

    return [
        module.Trial(slowed_by, "pass", 1.0, 18.0, 1.0, [a_round() for _ in range(12)])
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("slowed_by", "expected"), [(0.0, "pass"), (0.1, "regression"), (0.2, "regression")]
)
def test_resampled_trials_follow_the_gate(
    benchmark: Callable[[str], Any], slowed_by: float, expected: str
) -> None:
    module = benchmark("_gate_trials")
    # Slowed rounds are not drawn from.
    recorded = [*trials(module, 0.01), *trials(module, 0.01, slowed_by=0.5)]
    found = list(module.resampled_verdicts(recorded, slowed_by, Settings(), 40))
    assert {verdict for verdict, _ in found} == {expected}
    assert all(0 < seconds <= 60 for _, seconds in found)
    again = list(module.resampled_verdicts(recorded, slowed_by, Settings(), 40))
    assert found == again


def test_resampling_keeps_the_budget(benchmark: Callable[[str], Any]) -> None:
    module = benchmark("_gate_trials")
    recorded = trials(module, 0.3)
    found = list(module.resampled_verdicts(recorded, 0.0, Settings(budget_s=20.0), 20))
    assert all(seconds <= 20 for _, seconds in found)
    assert {verdict for verdict, _ in found} == {"inconclusive"}


def test_stored_baseline_alarms_where_the_machine_differs(
    benchmark: Callable[[str], Any],
) -> None:
    module = benchmark("_gate_trials")
    recorded = [*trials(module, 0.01), *trials(module, 0.0, slowed_by=0.1)]
    alarms, total = module.stored_baseline_alarms(recorded, 0.05)
    assert total == 90  # ordered pairs of ten trials of equal artifacts
    # Latencies that vary by 20 % exceed one another by 5 % in about four of ten cases.
    assert 20 < alarms < 60


def test_slowed_call_takes_longer_by_the_given_part(
    benchmark: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = benchmark("_slowed_worker")
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.001
        return now

    def call() -> str:
        nonlocal now
        now += 1.0
        return "result"

    monkeypatch.setattr(module.time, "perf_counter", clock)
    slowed: Callable[[], object] = module._slowed(call, 0.1)
    assert slowed() == "result"
    assert now == pytest.approx(1.1, abs=0.005)  # and a few readings of the clock
