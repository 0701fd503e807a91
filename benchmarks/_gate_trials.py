"""Trials of the latency gate: live ones, and those resampled from the rounds of live ones."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks._conditions import load_average
from benchmarks._slowed_worker import SlowedProcess
from edgekit.regress.contests import plan_contests
from edgekit.regress.rounds import HEAD, Round, run_round
from edgekit.regress.sampling import Latency, sample
from edgekit.regress.settings import Settings
from edgekit.runners.timing import TimingRequest
from edgekit.runners.turns import TurnsProcess

_TARGET = "onnxruntime"
_CONSECUTIVE = 4  # rounds that are drawn together, so that what lasts longer than one is kept


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of the gate. ``slowed_by`` is 0.1 where head takes 10 % longer."""

    slowed_by: float
    verdict: str
    ratio: float
    seconds: float
    load_average: float
    rounds: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def live_trial(base: Path, head: Path, slowed_by: float, settings: Settings, seed: int) -> Trial:
    """Run the gate on two files, of which head is slowed down inside its worker."""
    (contest,) = plan_contests(base, head, [_TARGET], {}).contests
    coins, load = random.Random(seed), load_average()

    def start(side: str, request: TimingRequest) -> TurnsProcess:
        if side == HEAD and slowed_by:
            return SlowedProcess(request, slowed_by)
        return TurnsProcess(request)

    def run() -> Round:
        return run_round(contest, settings, coins, start)

    found = sample({_TARGET: run}, settings, time.monotonic)[_TARGET]
    rounds = [_recorded(r) for r in found.rounds]
    ratio, seconds = round(found.ratio.value, 5), round(found.seconds, 2)
    return Trial(slowed_by, found.verdict.value, ratio, seconds, load, rounds)


def _recorded(found: Round) -> dict[str, Any]:
    return {
        "log_ratio": round(found.log_ratio, 6),
        "base_ms": round(found.base_ms, 5),
        "head_ms": round(found.head_ms, 5),
        "base_p50_ms": round(found.base.p50_ms, 5),
        "head_p50_ms": round(found.head.p50_ms, 5),
        "turns": found.turns,
        "seconds": round(found.seconds, 3),
    }


def resampled_verdicts(
    trials: Sequence[Trial], slowed_by: float, settings: Settings, count: int
) -> Iterator[tuple[str, float]]:
    """Yield verdict and seconds of trials that are made of recorded rounds of equal artifacts.

    Runs of consecutive rounds are drawn; a coin for each round swaps base and head, as the coin
    that chose the order has already; and head is slowed down by adding to the logarithm.
    """
    recorded = [trial.rounds for trial in trials if not trial.slowed_by]
    for number in range(count):
        draw = random.Random(number)
        found = _replay(_draw_rounds(recorded, draw), math.log1p(slowed_by), settings, draw)
        yield found.verdict.value, found.seconds


def _draw_rounds(
    recorded: Sequence[Sequence[dict[str, Any]]], draw: random.Random
) -> Iterator[dict[str, Any]]:
    starts = [(trial, index) for trial in recorded for index in range(len(trial))]
    while True:
        trial, first = draw.choice(starts)
        yield from trial[first : first + _CONSECUTIVE]


def _replay(
    rounds: Iterator[dict[str, Any]], shift: float, settings: Settings, draw: random.Random
) -> Latency:
    now = 0.0

    def run() -> Round:
        nonlocal now
        found = next(rounds)
        now += found["seconds"]
        sign = draw.choice((-1, 1))
        return _round(found, sign * found["log_ratio"] + shift)

    clock: Callable[[], float] = lambda: now  # noqa: E731
    return sample({_TARGET: run}, settings, clock)[_TARGET]


def _round(found: dict[str, Any], log_ratio: float) -> Round:
    # Blocks sum up all inferences for the report; the verdict does not read them.
    return Round(
        first=HEAD,
        log_ratio=log_ratio,
        base_ms=found["base_ms"],
        head_ms=found["base_ms"] * math.exp(log_ratio),
        turns=found["turns"],
        seconds=found["seconds"],
        base=None,  # type: ignore[arg-type]
        head=None,  # type: ignore[arg-type]
    )


def stored_baseline_alarms(trials: Sequence[Trial], tolerance: float) -> tuple[int, int]:
    """Return how often a gate without interval would alarm on equal artifacts.

    It compares the median latency of head in one trial with that of base in another one, as a gate
    does whose baseline was recorded earlier.

    Returns:
        Alarms, and the comparisons.
    """
    equal = [trial for trial in trials if not trial.slowed_by]
    alarms = total = 0
    for one in equal:
        for other in equal:
            if one is other:
                continue
            base, head = one.rounds[0]["base_p50_ms"], other.rounds[0]["head_p50_ms"]
            total += 1
            alarms += head / base > 1 + tolerance
    return alarms, total
