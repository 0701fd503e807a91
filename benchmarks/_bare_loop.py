"""Step: what a user would write around ONNX Runtime to time a file. Nothing of edgekit in it."""

from __future__ import annotations

import statistics
import time
from typing import Any

from benchmarks._process import answer


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Time a block of inferences.

    Request: ``path``, ``shape``, ``threads``, ``warmup`` and ``seconds``. ``p50_ms`` and
    ``min_ms`` are of single inferences, ``loop_us`` is the time of a loop that reads no clock,
    divided by its inferences.
    """
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = request["threads"] or 0
    session = onnxruntime.InferenceSession(request["path"], options, ["CPUExecutionProvider"])
    data = np.random.default_rng(0).standard_normal(request["shape"]).astype(np.float32)
    feeds = {session.get_inputs()[0].name: data}
    end = time.perf_counter() + request["warmup"]
    while time.perf_counter() < end:
        session.run(None, feeds)
    times = []
    end = time.perf_counter() + request["seconds"]
    while time.perf_counter() < end:
        begin = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    for _ in range(len(times)):
        session.run(None, feeds)
    loop_s = (time.perf_counter() - begin) / len(times)
    return {
        "p50_ms": 1e3 * statistics.median(times),
        "min_ms": 1e3 * min(times),
        "loop_us": 1e6 * loop_s,
        "runs": len(times),
    }


if __name__ == "__main__":
    answer(measure)
