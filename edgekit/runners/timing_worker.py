"""The child side of :mod:`edgekit.runners.timing`: times one artifact and answers in JSON."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import ConfigError
from edgekit.runners import open_model
from edgekit.runners.early_stopping import estimate
from edgekit.runners.layer_times import LayerProfiler
from edgekit.runners.run_options import Setup, TunableRunner
from edgekit.runners.tensors import ArtifactRunner, TensorInfo
from edgekit.runners.timing import TimingRequest
from edgekit.runners.worker import answer_job, peak_memory_bytes

_LEAST_RUNS = 10
_DEVICE_RUNS = 200  # timed by events, behind the block
_SEED = 0


@dataclass(frozen=True, slots=True)
class WarmCall:
    """An inference that is ready to be timed, and what its block tells beside the latencies."""

    call: Callable[[], object]
    facts: Mapping[str, Any]
    device_times: Callable[[int], list[float] | None] = lambda _runs: None


def _run(data: dict[str, Any]) -> dict[str, Any]:
    layers, stream = data.pop("layers"), data.pop("stream")
    if layers:
        return {"profile": _profile(data, layers)}
    least = _LEAST_RUNS if stream is None else stream["least_queries"]
    with warm_call(data) as warm:
        begin_s, busy, begin = time.monotonic(), time.process_time(), time.perf_counter()
        times = time_calls(warm.call, data["seconds"], least)
        busy = (time.process_time() - busy) / (time.perf_counter() - begin)
        end_s = time.monotonic()
        on_device = warm.device_times(min(len(times), _DEVICE_RUNS))
    shared = {
        "busy_cores": busy,
        "device_ms": None if on_device is None else float(np.median(on_device)),
        **warm.facts,
    }
    if stream is None:
        return {**summarize(times), "begin_s": begin_s, "end_s": end_s, **shared}
    return {
        "segments": _segments(times, stream["segments"], (begin_s, end_s), shared),
        "duration_s": end_s - begin_s,
        "early_stopping": asdict(estimate(times)),
    }


def _segments(
    times: list[int], count: int, span: tuple[float, float], shared: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Cut a run into consecutive blocks of about as many queries each."""
    ends = np.cumsum(times)
    # What lies between two calls is spread evenly over them: it is a millionth of a second each.
    scale = (span[1] - span[0]) / float(ends[-1])
    bounds = np.linspace(0, len(times), min(count, len(times)) + 1).astype(int).tolist()
    found = []
    for first, last in pairwise(bounds):
        begin, end = (0.0 if at == 0 else float(ends[at - 1]) for at in (first, last))
        where = {"begin_s": span[0] + scale * begin, "end_s": span[0] + scale * end}
        found.append({**summarize(times[first:last]), **where, **shared})
    return found


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
    with _open(request) as runner:
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
            "setup": Setup().to_dict(),
        }
        if isinstance(runner, TunableRunner):
            yield WarmCall(call, {**facts, "setup": runner.setup.to_dict()}, runner.device_times)
        else:
            yield WarmCall(call, facts)


def _open(request: TimingRequest) -> ArtifactRunner:
    return open_model(
        request.target, request.model, threads=request.threads, options=request.options
    )


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
    with _open(request) as runner:
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
