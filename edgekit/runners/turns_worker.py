"""The child side of :mod:`edgekit.runners.turns`: ``python -m`` this module and a request.

It answers each line on standard input by one line of JSON on what was standard output when it
started, until its input ends.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from edgekit.errors import EdgekitError
from edgekit.runners.timing_worker import WarmCall, summarize, time_calls, warm_call

_LEAD_IN_S = 0.002
"""Untimed calls before each turn, at least one: the other process has had the caches since, and
ONNX Runtime's threads spin for about a millisecond after their last call."""


def main(job: Path) -> None:
    """Serve the request in the file ``job``."""
    # Runtimes write lines of their own to standard output: those go to the log.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        with warm_call(json.loads(job.read_text(encoding="utf-8"))) as warm:
            _tell(answers, {})
            _serve(warm, answers)
    except EdgekitError as error:
        _tell(answers, {}, error.to_dict())


def _serve(warm: WarmCall, answers: TextIO) -> None:
    times: list[int] = []
    busy_s, spent_s = 0.0, 0.0
    for line in sys.stdin:
        command = json.loads(line)
        if command["seconds"] is None:
            busy = busy_s / spent_s if spent_s else 0.0
            _tell(answers, {"block": {**summarize(times), "busy_cores": busy, **warm.facts}})
            continue
        turn, seconds = _take_turn(warm.call, command)
        busy_s, spent_s = busy_s + seconds[0], spent_s + seconds[1]
        times += turn
        _tell(answers, {"ms": float(np.percentile(turn, command["percentile"])) / 1e6})


def _take_turn(
    call: Callable[[], object], command: Mapping[str, Any]
) -> tuple[list[int], tuple[float, float]]:
    """Return the latencies in nanoseconds, and the seconds of processor and of time they took."""
    time_calls(call, _LEAD_IN_S, 1)
    busy, begin = time.process_time(), time.perf_counter()
    times = time_calls(call, command["seconds"], 1)
    return times, (time.process_time() - busy, time.perf_counter() - begin)


def _tell(
    answers: TextIO, answer: Mapping[str, Any], error: Mapping[str, str] | None = None
) -> None:
    answers.write(json.dumps({"error": error, **answer}) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
