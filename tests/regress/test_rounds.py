"""One round, with processes of the test's own: the order of turns, and what comes of them."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekit.bench.lanes import FILE, Lane
from edgekit.errors import ConfigError, VerificationError
from edgekit.regress.contests import Contest, Side
from edgekit.regress.rounds import run_round
from edgekit.regress.settings import Settings
from edgekit.runners.timing import Block, TimingRequest
from edgekit.runners.turns import TurnsProcess

BLOCK = Block(10, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, None, {"x": [1, 3]}, {})
QUICK = Settings(round_seconds=1e-6, threads=1)


class Machine:
    """What both processes run on: each turn takes longer than the one before."""

    def __init__(self, ratio: float = 1.0) -> None:
        self.ratio = ratio
        self.events: list[tuple[str, str]] = []
        self.ended: list[str] = []
        self.fails = ""
        self.block = {"base": BLOCK, "head": BLOCK}

    def start(self, side: str, request: TimingRequest) -> TurnsProcess:
        return FakeProcess(self, side, request)

    def turns(self) -> list[str]:
        return [side for what, side in self.events if what == "turn"]


class FakeProcess(TurnsProcess):
    def __init__(self, machine: Machine, side: str, request: TimingRequest) -> None:
        super().__init__(request)
        self._machine, self._side = machine, side

    def __enter__(self) -> FakeProcess:
        self._machine.events.append(("start", self._side))
        return self

    def __exit__(self, *exc: object) -> None:
        self._machine.ended.append(self._side)

    def ready(self) -> None:
        self._machine.events.append(("ready", self._side))
        if self._machine.fails == self._side:
            raise VerificationError("its process crashed")

    def turn(self, seconds: float, percentile: float) -> float:
        assert (seconds, percentile) == (0.010, 10.0)
        self._machine.events.append(("turn", self._side))
        slow = 1 + 0.001 * len(self._machine.turns())
        return slow * (self._machine.ratio if self._side == "head" else 1.0)

    def block(self) -> Block:
        return self._machine.block[self._side]


def contest() -> Contest:
    base, head = (
        Side(Lane(name, Path(name), "onnxruntime", FILE, Path(name), 1, {}), None)
        for name in ("base.onnx", "head.onnx")
    )
    return Contest("onnxruntime", base, head)


def run(machine: Machine, seed: int = 0, **changes: Any) -> Any:
    settings = replace(QUICK, **changes)
    return run_round(contest(), settings, random.Random(seed), machine.start)


def test_both_load_side_by_side_and_then_take_turns() -> None:
    machine = Machine()
    found = run(machine)
    kinds = [what for what, _ in machine.events]
    assert kinds == ["start", "start", "ready", "ready", *["turn"] * 10]
    assert found.turns == 5  # the least, however short the round is
    for pair in zip(machine.turns()[::2], machine.turns()[1::2], strict=True):
        assert set(pair) == {"base", "head"}
    assert sorted(machine.ended) == ["base", "head"]
    assert found.first == machine.events[0][1]


def test_coins_decide_each_order() -> None:
    starts: Counter[str] = Counter()
    turns: Counter[str] = Counter()
    for seed in range(200):
        machine = Machine()
        starts[run(machine, seed).first] += 1
        turns.update(machine.turns()[::2])
    # Fair coins: four standard deviations of 200 and of 1000 falls are 28 and 63.
    assert abs(starts["base"] - 100) <= 28
    assert abs(turns["base"] - 500) <= 63
    again = [run(Machine(), 7).first for _ in range(2)]
    assert again[0] == again[1]  # the seed decides


def test_ratio_is_that_of_turns_side_by_side() -> None:
    # The machine slows down by 2 % during the round, by 0.1 % between the turns of a pair.
    found = run(Machine(1.2))
    assert math.exp(found.log_ratio) == pytest.approx(1.2, rel=2e-3)
    assert found.head_ms / found.base_ms == pytest.approx(1.2, rel=2e-3)
    assert found.base == BLOCK


def test_round_lasts_as_long_as_asked() -> None:
    assert run(Machine(), round_seconds=0.01).turns > 5


def test_other_inputs_are_no_comparison() -> None:
    machine = Machine()
    machine.block["head"] = replace(BLOCK, inputs={"x": [2, 3]})
    with pytest.raises(ConfigError, match=r"base takes .* head"):
        run(machine)


@pytest.mark.parametrize("side", ["base", "head"])
def test_failure_ends_both_processes(side: str) -> None:
    machine = Machine()
    machine.fails = side
    with pytest.raises(VerificationError, match="crashed"):
        run(machine)
    assert sorted(machine.ended) == ["base", "head"]
