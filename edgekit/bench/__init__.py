"""Latency of artifacts on this machine: float against INT8, each in a process of its own.

Blocks of all lanes alternate, each round in the opposite order, so that a slow drift of the
machine cancels in the ratios. No torch: this also runs on devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from edgekit.bench.conditions import conditions, moment
from edgekit.bench.explain import Profiled, Reason, explain
from edgekit.bench.lanes import Lane, plan_lanes
from edgekit.bench.report import BenchReport, Comparison, LaneResult, Settings
from edgekit.errors import ConfigError, EdgekitError
from edgekit.runners.timing import Block, TimingRequest, profile_layers, time_block
from edgekit.types import Progress, no_progress

_PROFILE_MS = 2000.0
_PROFILE_RUNS = (5, 50)


def bench(
    paths: Sequence[str | Path],
    *,
    targets: Sequence[str] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    blocks: int = 7,
    block_seconds: float = 0.5,
    warmup_seconds: float = 0.3,
    threads: int | None = None,
    batch: int = 1,
    progress: Progress = no_progress,
) -> BenchReport:
    """Time artifacts and compare INT8 with float.

    Args:
        paths: result directories, and model files (``.onnx``, ``.xml``, ``.plan``). A directory is
            timed in each of its targets, beside the float network where that runtime reads it; a
            file in each runtime that reads it, compared with the first file.
        targets: the runtimes to use, which then must work here.
        shapes: sizes of inputs, by name, where a file leaves them open.
        blocks: rounds; in each, every lane runs one block in a fresh process.
        block_seconds: length of a block.
        warmup_seconds: inferences before each block.
        threads: threads of the runtimes; their own choice if ``None``.
        batch: samples in one inference, where the file leaves the choice.
        progress: called before each block.

    Raises:
        ConfigError: a setting is out of range or does not fit a file.
        EdgekitError: a path cannot be read, or nothing can be run here.
    """
    settings = Settings(blocks, block_seconds, warmup_seconds, threads, batch)
    _check(settings)
    lanes = plan_lanes([Path(path) for path in paths], targets, shapes or {})
    skipped: dict[str, str] = {}
    machine = conditions()
    rounds = []
    measured: dict[str, list[Block]] = {lane.name: [] for lane in lanes}
    for number in range(blocks):
        rounds.append(moment())
        if number == 0:
            lanes = _first_round(lanes, settings, measured, skipped, targets is not None, progress)
            continue
        for lane in reversed(lanes) if number % 2 else lanes:
            progress(f"block {number + 1} of {blocks}: {lane.name}", 0.9 * number / blocks)
            measured[lane.name].append(time_block(_request(lane, settings)))
    rounds.append(moment())
    results = tuple(LaneResult(lane, tuple(measured[lane.name])) for lane in lanes)
    progress("profile", 0.9)
    comparisons = tuple(_compare(results, settings, machine))
    progress("done", 1.0)
    return BenchReport(settings, machine, rounds, results, comparisons, skipped)


def _check(settings: Settings) -> None:
    if settings.blocks < 2:
        raise ConfigError(f"{settings.blocks} blocks: an interval needs at least 2")
    if not settings.block_seconds > 0 or settings.warmup_seconds < 0:
        raise ConfigError("the seconds of a block must be positive, those of warm-up at least 0")
    for name, value in (("threads", settings.threads), ("batch", settings.batch)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}")


def _first_round(
    lanes: Sequence[Lane],
    settings: Settings,
    measured: Mapping[str, list[Block]],
    skipped: dict[str, str],
    must_run: bool,
    progress: Progress,
) -> list[Lane]:
    """Time one block of each lane and return the lanes that run on this machine."""
    running: list[Lane] = []
    failures: list[EdgekitError] = []
    for lane in lanes:
        progress(f"block 1 of {settings.blocks}: {lane.name}", 0.0)
        try:
            measured[lane.name].append(time_block(_request(lane, settings)))
            running.append(lane)
        except ConfigError:
            raise
        except EdgekitError as error:
            if must_run:
                raise
            failures.append(error)
            skipped[lane.name] = error.message
    if not running:
        raise failures[0]
    return running


def _request(lane: Lane, settings: Settings) -> TimingRequest:
    return TimingRequest(
        target=lane.target,
        model=lane.model,
        shapes=lane.shapes,
        batch=settings.batch,
        threads=settings.threads,
        warmup_s=settings.warmup_seconds,
        seconds=settings.block_seconds,
    )


def _compare(
    results: Sequence[LaneResult], settings: Settings, machine: Mapping[str, object]
) -> Iterator[Comparison]:
    """Yield the comparisons, explained where a lane is not faster than its baseline."""
    by_name = {result.lane.name: result for result in results}
    profiles: dict[str, Profiled] = {}
    for result in results:
        baseline = by_name.get(result.lane.baseline or "")
        if baseline is None:
            continue
        comparison = Comparison.of(result, baseline)
        if comparison.verdict == "faster":
            yield comparison
            continue
        for side in (result, baseline):
            if side.lane.name not in profiles:
                profiles[side.lane.name] = _profile(side, settings)
        yield _explained(comparison, profiles, machine)


def _profile(result: LaneResult, settings: Settings) -> Profiled:
    latency_ms = result.median("p50_ms").value
    least, most = _PROFILE_RUNS
    runs = min(max(int(_PROFILE_MS / latency_ms), least), most)
    return Profiled.of(profile_layers(_request(result.lane, settings), runs), latency_ms)


def _explained(
    comparison: Comparison, profiles: Mapping[str, Profiled], machine: Mapping[str, object]
) -> Comparison:
    lane, baseline = profiles[comparison.lane], profiles[comparison.baseline]
    cpu = machine["cpu"]
    assert isinstance(cpu, dict)
    reasons = explain(lane, baseline, comparison.baseline, cpu["flags"], cpu["machine"])
    if comparison.verdict == "unclear":
        text = (
            "the interval holds 1: the difference is smaller than what this machine can resolve "
            "now; more --blocks, or a quieter machine, would tell"
        )
        reasons = (Reason("unclear", text), *reasons)
    groups = {comparison.lane: lane.groups(), comparison.baseline: baseline.groups()}
    return replace(comparison, reasons=reasons, groups=groups)
