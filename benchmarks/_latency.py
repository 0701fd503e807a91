"""Step: one block of single-stream inferences of one artifact at batch 1."""

from __future__ import annotations

import statistics
import time
from typing import Any

from benchmarks._images import image_set
from benchmarks._process import answer
from benchmarks._runtimes import Infer, open_inference

_WARM_UP_S = 0.3
_LEAST_WARM_UPS = 10
_LEAST_RUNS = 30


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Time a block.

    Request: ``case``, ``data``, ``runtime``, ``path``, ``seconds`` (of timed inferences).
    """
    image = image_set(request, 1).input(0)
    infer = open_inference(request["runtime"], request["path"])
    _repeat(infer, image, _WARM_UP_S, _LEAST_WARM_UPS)
    times = sorted(_repeat(infer, image, request["seconds"], _LEAST_RUNS))
    return {
        "median_ms": 1e3 * statistics.median(times),
        "p90_ms": 1e3 * times[int(0.9 * (len(times) - 1))],
        "runs": len(times),
    }


def _repeat(infer: Infer, image: Any, seconds: float, least: int) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        started = time.perf_counter()
        infer(image)
        times.append(time.perf_counter() - started)
    return times


if __name__ == "__main__":
    answer(measure)
