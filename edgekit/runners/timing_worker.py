"""The child side of :mod:`edgekit.runners.timing`: times one artifact and answers in JSON."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import ConfigError
from edgekit.runners import open_model
from edgekit.runners.layer_times import LayerProfiler
from edgekit.runners.tensors import ArtifactRunner, TensorInfo
from edgekit.runners.timing import TimingRequest
from edgekit.runners.worker import answer_job, peak_memory_bytes

_LEAST_RUNS = 10
_SEED = 0


def _run(data: dict[str, Any]) -> dict[str, Any]:
    ready_s = time.monotonic()
    started_s, layers = data.pop("started_s"), data.pop("layers")
    request = TimingRequest.from_dict(data)
    begin = time.perf_counter()
    with open_model(request.target, request.model, threads=request.threads) as runner:
        load_s = time.perf_counter() - begin
        feeds = draw_feeds(runner.inputs, request)
        if layers:
            return {"profile": _profile(runner, feeds, layers)}
        call = runner.bind(feeds)
        begin = time.perf_counter()
        call()
        first_s = time.perf_counter() - begin
        time_calls(call, request.warmup_s, _LEAST_RUNS)
        peak = peak_memory_bytes()  # before the list of times grows
        busy, begin = time.process_time(), time.perf_counter()
        times = time_calls(call, request.seconds, _LEAST_RUNS)
        busy = (time.process_time() - busy) / (time.perf_counter() - begin)
        versions = runner.versions
    return {
        **_summary(times),
        "busy_cores": busy,
        "process_ms": 1e3 * (ready_s - started_s),
        "load_ms": 1e3 * load_s,
        "first_ms": 1e3 * first_s,
        "peak_memory_bytes": peak,
        "inputs": {name: list(array.shape) for name, array in feeds.items()},
        "versions": versions,
    }


def time_calls(call: Callable[[], object], seconds: float, least: int) -> list[int]:
    """Call again and again and return how long each call took, in nanoseconds.

    Args:
        call: what to time.
        seconds: time to fill; the call that begins within it is finished.
        least: calls at least.
    """
    clock = time.perf_counter_ns
    times: list[int] = []
    end = clock() + int(1e9 * seconds)
    # Nothing stands between the two readings but the call: the loop's own work is not timed.
    while len(times) < least or clock() < end:
        begin = clock()
        call()
        times.append(clock() - begin)
    return times


def _summary(times: list[int]) -> dict[str, float]:
    p50, p90, p99 = np.percentile(times, (50, 90, 99)) / 1e6
    return {
        "runs": len(times),
        "min_ms": min(times) / 1e6,
        "p50_ms": float(p50),
        "p90_ms": float(p90),
        "p99_ms": float(p99),
        "mean_ms": float(np.mean(times)) / 1e6,
        "max_ms": max(times) / 1e6,
    }


def _profile(
    runner: ArtifactRunner, feeds: Mapping[str, np.ndarray], runs: int
) -> dict[str, Any] | None:
    if not isinstance(runner, LayerProfiler):
        return None
    return runner.profile_layers(feeds, runs).to_dict()


def draw_feeds(inputs: tuple[TensorInfo, ...], request: TimingRequest) -> dict[str, np.ndarray]:
    """Return standard-normal floats, and zeros for integers: valid ids of every table.

    Raises:
        ConfigError: a size is not known, or contradicts the file.
    """
    generator = np.random.default_rng(_SEED)
    feeds = {}
    for info in inputs:
        shape = _shape(info, request)
        if np.issubdtype(np.dtype(info.dtype), np.floating):
            feeds[info.name] = generator.standard_normal(shape).astype(info.dtype)
        else:
            feeds[info.name] = np.zeros(shape, info.dtype)
    return feeds


def _shape(info: TensorInfo, request: TimingRequest) -> tuple[int, ...]:
    stated = request.shapes.get(info.name, (None,) * len(info.shape))
    pairs = list(zip(info.shape, stated, strict=False))[1:]
    if len(stated) != len(info.shape) or any(None not in p and p[0] != p[1] for p in pairs):
        raise ConfigError(f"input '{info.name}' is {info}, not {list(stated)}")
    sizes = [own if own is not None else size for own, size in zip(info.shape, stated, strict=True)]
    if sizes and info.shape[0] is None:
        sizes[0] = request.batch
    elif request.batch != 1 and sizes[:1] != [request.batch]:
        raise ConfigError(
            f"input '{info.name}' is {info}: its first axis is fixed, {request.batch} does not fit",
            "leave out --batch",
        )
    if None in sizes:
        raise ConfigError(
            f"input '{info.name}' is {info}: the file does not say all sizes",
            f"state them, for example --input {info.name}:1x3x224x224",
        )
    return tuple(size for size in sizes if size is not None)


def main(job: Path) -> None:
    """Run the request in the file ``job`` and write the answer into the same folder."""
    answer_job(job, _run)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
