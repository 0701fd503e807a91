"""The loop over rounds, fed with rounds and a clock of the test's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from edgekit.errors import ConfigError
from edgekit.regress.rounds import Round
from edgekit.regress.sampling import Latency, joint_verdict, sample
from edgekit.regress.sequential import ERROR_RATE, Verdict
from edgekit.regress.settings import Settings, parse_percent
from edgekit.runners.timing import Block

BLOCK = Block(10, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, None, {}, {})
ROUND_S = 1.5


def a_round(ratio: float, base_ms: float = 2.0) -> Round:
    return Round("base", math.log(ratio), base_ms, base_ms * ratio, 20, ROUND_S, BLOCK, BLOCK)


class Bench:
    """Rounds with given ratios, each of which takes time on the clock."""

    def __init__(self, seconds: float = ROUND_S) -> None:
        self.now = 100.0
        self.seconds = seconds
        self.order: list[str] = []

    def clock(self) -> float:
        return self.now

    def target(
        self, name: str, ratios: Iterator[float], base_ms: float = 2.0
    ) -> Callable[[], Round]:
        def run() -> Round:
            self.now += self.seconds
            self.order.append(name)
            return a_round(next(ratios), base_ms)

        return run


def around(ratio: float, spread: float, seed: int = 0) -> Iterator[float]:
    rng = np.random.default_rng(seed)
    while True:
        yield ratio * math.exp(rng.normal(0, spread))


def judge(ratio: float, spread: float, *, base_ms: float = 2.0, **settings: Any) -> Latency:
    bench = Bench()
    runs = {"onnxruntime": bench.target("onnxruntime", around(ratio, spread), base_ms)}
    return sample(runs, Settings(**settings), bench.clock)["onnxruntime"]


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [(1.0, Verdict.PASS), (1.1, Verdict.REGRESSION), (0.9, Verdict.IMPROVEMENT)],
)
def test_clear_case_stops_early(ratio: float, verdict: Verdict) -> None:
    found = judge(ratio, 0.005)
    assert found.verdict is verdict
    assert found.seconds < 20
    assert len(found.rounds) == found.ratio.rounds == 12  # the second look
    assert found.ratio.low < ratio < found.ratio.high
    assert found.ratio.value == pytest.approx(ratio, rel=0.01)


def test_unclear_case_takes_the_budget_and_not_more() -> None:
    found = judge(1.05, 0.02)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert 60 - ROUND_S < found.seconds <= 60
    assert [look.rounds for look in found.looks] == [8, 12, 16, 23, 32, 40]
    assert sum(look.level for look in found.looks) <= ERROR_RATE


@pytest.mark.parametrize("seconds", [100.0, 25.0])
def test_slow_target_has_at_least_one_round(seconds: float) -> None:
    bench = Bench(seconds)
    found = sample({"t": bench.target("t", around(2.0, 0.0))}, Settings(), bench.clock)["t"]
    assert len(found.rounds) == max(int(60 // seconds), 1)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.ratio.to_dict()["low"] is None


def test_targets_take_turns_and_leave_when_decided() -> None:
    bench = Bench()
    runs = {
        "clear": bench.target("clear", around(1.3, 0.001)),
        "open": bench.target("open", around(1.05, 0.03)),
    }
    found = sample(runs, Settings(budget_s=90), bench.clock)
    assert list(found) == ["clear", "open"]
    assert found["clear"].verdict is Verdict.REGRESSION
    assert found["open"].verdict is Verdict.INCONCLUSIVE
    assert bench.order[:4] == ["clear", "open", "clear", "open"]
    assert len(found["open"].rounds) > len(found["clear"].rounds)
    for latency in found.values():  # together they have the rate of one
        assert sum(look.level for look in latency.looks) <= ERROR_RATE / 2


def test_floor_lets_a_tiny_network_pass() -> None:
    # 20 % of 10 microseconds are 2: below the floor of 5, which allows 50 %.
    tiny = judge(1.2, 0.005, base_ms=0.01)
    assert tiny.verdict is Verdict.PASS
    assert tiny.limit == pytest.approx(1.5)
    strict = judge(1.2, 0.005, base_ms=0.01, floor_us=0.0)
    assert (strict.verdict, strict.limit) == (Verdict.REGRESSION, 1.05)


def test_tolerance_moves_the_limit() -> None:
    assert judge(1.1, 0.005, tolerance=0.2).verdict is Verdict.PASS
    assert judge(1.04, 0.002, tolerance=0.01).verdict is Verdict.REGRESSION


def test_medians_over_rounds() -> None:
    found = judge(1.5, 0.0)
    assert (found.base_ms, found.head_ms) == pytest.approx((2.0, 3.0))


@pytest.mark.parametrize(
    ("verdicts", "joint"),
    [
        (["pass", "improvement"], "improvement"),
        (["pass", "inconclusive", "improvement"], "inconclusive"),
        (["inconclusive", "regression"], "regression"),
        (["pass", "pass"], "pass"),
    ],
)
def test_joint_verdict_asks_for_most_attention(verdicts: Sequence[str], joint: str) -> None:
    assert joint_verdict([Verdict(v) for v in verdicts]).value == joint


@pytest.mark.parametrize(
    "settings",
    [
        {"tolerance": 0.0},
        {"tolerance": math.nan},
        {"budget_s": 0.0},
        {"round_seconds": -1.0},
        {"floor_us": -1.0},
        {"warmup_seconds": math.inf},
        {"percentile": 101.0},
        {"threads": 0},
        {"batch": 0},
    ],
    ids=str,
)
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Settings(**settings)


@pytest.mark.parametrize(
    ("text", "part"), [("5%", 0.05), (" 2.5 % ", 0.025), (".5%", 0.005), (0.1, 0.1)]
)
def test_percentages(text: str | float, part: float) -> None:
    assert parse_percent(text, "tolerance") == pytest.approx(part)


@pytest.mark.parametrize("text", ["5", "0.05", "", "%", "-5%", "1e3%", "5 per cent"])
def test_what_is_no_percentage(text: str) -> None:
    with pytest.raises(ConfigError, match="is no percentage"):
        parse_percent(text, "--tolerance")
