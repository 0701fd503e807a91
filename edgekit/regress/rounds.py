"""One round: base and head, each in a fresh process, take turns on the machine.

Chance in loading (memory layout, placement of threads) counts as what it is, variation between
rounds; and what disturbs the machine for longer than a turn disturbs both. Coins decide which
process is started first and, turn by turn, which goes first. So with equal artifacts either sign of
a round's result is equally likely, whatever the machine does meanwhile: that is all that the
interval of :mod:`edgekit.regress.signed_rank` assumes.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from edgekit.errors import ConfigError
from edgekit.regress.contests import Contest, timing_request
from edgekit.regress.settings import Settings
from edgekit.runners.timing import Block, TimingRequest
from edgekit.runners.turns import TurnsProcess

BASE, HEAD = "base", "head"
_TURN_S = 0.010  # about the slice of time that a scheduler gives to a process
_LEAST_TURNS = 5  # of each side: their median stands two disturbed ones

Start = Callable[[str, TimingRequest], TurnsProcess]
"""Makes the process of a side, which enters it."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one round told.

    Attributes:
        first: the side that was started first.
        log_ratio: median over turns of the natural logarithm of head / base.
        base_ms, head_ms: medians over turns of the latency that is compared.
        turns: of each side.
        seconds: wall time, starting the processes included.
        base, head: all inferences of the round, as ``edgekit bench`` sums up a block.
    """

    first: str
    log_ratio: float
    base_ms: float
    head_ms: float
    turns: int
    seconds: float
    base: Block
    head: Block

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def start_process(side: str, request: TimingRequest) -> TurnsProcess:
    """Return the process of a side; see :data:`Start`."""
    del side  # base and head are treated alike
    return TurnsProcess(request)


def run_round(
    contest: Contest, settings: Settings, coins: random.Random, start: Start = start_process
) -> Round:
    """Let base and head take turns.

    Args:
        contest: the two artifacts.
        settings: how long, and which latency counts.
        coins: decides the order.
        start: makes the processes.

    Raises:
        ConfigError: base and head do not take the same inputs.
        EdgekitError: one of them cannot be run here, or its process crashed.
    """
    begin = time.perf_counter()
    order = _order(coins)
    lanes = {BASE: contest.base.lane, HEAD: contest.head.lane}
    with ExitStack() as stack:
        processes = {
            side: stack.enter_context(start(side, timing_request(lanes[side], settings)))
            for side in order
        }
        for side in order:
            processes[side].ready()
        turns = _take_turns(processes, settings, coins)
        base, head = (processes[side].block() for side in (BASE, HEAD))
    if base.inputs != head.inputs:
        raise ConfigError(
            f"{contest.target}: base takes {dict(base.inputs)}, head {dict(head.inputs)}",
            "artifacts of the same inputs can be compared; --input states sizes that are open",
        )
    return Round(
        first=order[0],
        log_ratio=statistics.median(math.log(turn[HEAD] / turn[BASE]) for turn in turns),
        base_ms=statistics.median(turn[BASE] for turn in turns),
        head_ms=statistics.median(turn[HEAD] for turn in turns),
        turns=len(turns),
        seconds=time.perf_counter() - begin,
        base=base,
        head=head,
    )


def _take_turns(
    processes: dict[str, TurnsProcess], settings: Settings, coins: random.Random
) -> list[dict[str, float]]:
    turns: list[dict[str, float]] = []
    end = time.perf_counter() + settings.round_seconds
    while len(turns) < _LEAST_TURNS or time.perf_counter() < end:
        turns.append(
            {side: processes[side].turn(_TURN_S, settings.percentile) for side in _order(coins)}
        )
    return turns


def _order(coins: random.Random) -> tuple[str, str]:
    return (BASE, HEAD) if coins.random() < 0.5 else (HEAD, BASE)
