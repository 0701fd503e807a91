"""A worker of `edgekit regress` whose inferences take longer, by a part of what they take."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgekit.runners import turns_worker
from edgekit.runners.timing import TimingRequest
from edgekit.runners.timing_worker import WarmCall, warm_call
from edgekit.runners.turns import TurnsProcess

_VARIABLE = "EDGEKIT_BENCHMARK_SLOWED_BY"


class SlowedProcess(TurnsProcess):
    """Parent side; ``part`` is 0.1 for 10 % longer."""

    module = "benchmarks._slowed_worker"

    def __init__(self, request: TimingRequest, part: float) -> None:
        super().__init__(request)
        os.environ[_VARIABLE] = str(part)  # read by this module's own child side only


@contextmanager
def _slowed_call(data: Mapping[str, Any]) -> Iterator[WarmCall]:
    with warm_call(data) as warm:
        yield replace(warm, call=_slowed(warm.call, float(os.environ[_VARIABLE])))


def _slowed(call: Callable[[], object], part: float) -> Callable[[], object]:
    clock = time.perf_counter

    def slow() -> object:
        begin = clock()
        result = call()
        now = clock()
        end = now + part * (now - begin)
        while clock() < end:  # works, as a slower kernel would: sleeping is too coarse
            pass
        return result

    return slow


if __name__ == "__main__":
    turns_worker.warm_call = _slowed_call  # type: ignore[attr-defined]
    turns_worker.main(Path(sys.argv[1]))
