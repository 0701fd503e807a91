"""The child side of :mod:`edgekit.runners.timing`: times one artifact and answers in JSON."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import ConfigError
from edgekit.runners import open_model
from edgekit.runners.layer_times import LayerProfiler
from edgekit.runners.tensors import TensorInfo
from edgekit.runners.timing import TimingRequest
from edgekit.runners.worker import answer_job, peak_memory_bytes

_LEAST_RUNS = 10
_SEED = 0


@dataclass(frozen=True, slots=True)
class WarmCall:
    """An inference that is ready to be timed, and what its block tells beside the latencies."""

    call: Callable[[], object]
    facts: Mapping[str, Any]


def _run(data: dict[str, Any]) -> dict[str, Any]:
    layers = data.pop("layers")
    if layers:
        return {"profile": _profile(data, layers)}
    with warm_call(data) as warm:
        busy, begin = time.process_time(), time.perf_counter()
        times = time_calls(warm.call, data["seconds"], _LEAST_RUNS)
        busy = (time.process_time() - busy) / (time.perf_counter() - begin)
    return {**summarize(times), "busy_cores": busy, **warm.facts}


@contextmanager
def warm_call(data: Mapping[str, Any]) -> Iterator[WarmCall]:
    """Open the artifact, run it once, and then as long as its warm-up takes.

    Args:
        data: a :class:`TimingRequest` as a dictionary, and ``started_s``, when its parent started
            this process, on the monotonic clock.
    """
    ready_s = time.monotonic()
    request, started_s = _split(data)
    begin = time.perf_counter()
    with open_model(request.target, request.model, threads=request.threads) as runner:
        load_s = time.perf_counter() - begin
        feeds = draw_feeds(runner.inputs, request)
        call = runner.bind(feeds)
        begin = time.perf_counter()
        call()
        first_s = time.perf_counter() - begin
        time_calls(call, request.warmup_s, _LEAST_RUNS)
        facts = {
            "process_ms": 1e3 * (ready_s - started_s),
            "load_ms": 1e3 * load_s,
            "first_ms": 1e3 * first_s,
            "peak_memory_bytes": peak_memory_bytes(),  # before the list of times grows
            "inputs": {name: list(array.shape) for name, array in feeds.items()},
            "versions": runner.versions,
        }
        yield WarmCall(call, facts)


def _split(data: Mapping[str, Any]) -> tuple[TimingRequest, float]:
    fields = dict(data)
    started_s = float(fields.pop("started_s"))
    return TimingRequest.from_dict(fields), started_s


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


def summarize(times: list[int]) -> dict[str, float]:
    """Return the number of calls and their latencies in ms; ``times`` are in nanoseconds."""
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


def _profile(data: Mapping[str, Any], runs: int) -> dict[str, Any] | None:
    request, _ = _split(data)
    with open_model(request.target, request.model, threads=request.threads) as runner:
        if not isinstance(runner, LayerProfiler):
            return None
        return runner.profile_layers(draw_feeds(runner.inputs, request), runs).to_dict()


def draw_feeds(
    inputs: tuple[TensorInfo, ...], request: TimingRequest, seed: int = _SEED
) -> dict[str, np.ndarray]:
    """Return standard-normal floats, and zeros for integers: valid ids of every table.

    Raises:
        ConfigError: a size is not known, or contradicts the file.
    """
    generator = np.random.default_rng(seed)
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
