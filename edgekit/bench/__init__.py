"""Latency of artifacts on this machine: float against INT8, each in a process of its own.

Blocks of all lanes alternate, each round in the opposite order, so that a slow drift of the
machine cancels in the ratios. No torch: this also runs on devices.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgekit.bench.conditions import conditions
from edgekit.bench.energy import Power
from edgekit.bench.explain import Profiled, Reason, explain
from edgekit.bench.lanes import ALL, plan_lanes
from edgekit.bench.measure import Measured, Plan, measure_blocks, measure_streams
from edgekit.bench.network_lanes import Network as Network
from edgekit.bench.report import BenchReport, Comparison, LaneResult
from edgekit.bench.settings import BLOCKS, SINGLE_STREAM, Settings
from edgekit.power.monitor import PowerMonitor
from edgekit.registry import RUNNERS
from edgekit.runners.run_options import NetworkOptions
from edgekit.runners.timing import profile_layers
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
    mode: str = BLOCKS,
    min_seconds: float = 600.0,
    min_queries: int = 100,
    copies: bool = True,
    cuda_graph: bool = False,
    energy: bool = True,
    network: Network | None = None,
    file_options: NetworkOptions | None = None,
    finished: Callable[[BenchReport], None] | None = None,
    progress: Progress = no_progress,
) -> BenchReport:
    """Time artifacts and compare INT8 with float.

    Args:
        paths: result directories, and model files (``.onnx``, ``.xml``, ``.plan``; ``.pt`` and the
            like in torch). A directory is timed in each of its targets, beside the float network
            where that runtime reads it; a file in each runtime that reads it, compared with the
            first file.
        targets: the runtimes to use, which then must work here; ``["all"]`` for every one that
            does, with the reasons of those that do not.
        shapes: sizes of inputs, by name, where a file leaves them open.
        blocks: rounds; in each, every lane runs one block in a fresh process.
        block_seconds: length of a block.
        warmup_seconds: inferences before each block.
        threads: threads of the runtimes; their own choice if ``None``.
        batch: samples in one inference, where the file leaves the choice.
        mode: ``"blocks"``, or ``"single-stream"`` for one uninterrupted run of each lane, after
            the scenario of MLPerf Inference.
        min_seconds: shortest duration of a single stream.
        min_queries: fewest inferences of a single stream.
        copies: whether copies to and from a GPU belong to an inference.
        cuda_graph: whether an inference is the launch of a CUDA graph, where there is CUDA.
        energy: whether power is sampled, where it can be read.
        network: the file that a result was made from, for torch.
        file_options: how torch opens files among ``paths``.
        finished: called after each round from the second to the last but one, with a report of
            what is measured, without energy and explanations.
        progress: called before each block.

    Raises:
        ConfigError: a setting is out of range or does not fit a file.
        EdgekitError: a path cannot be read, or nothing can be run here.
    """
    settings = Settings(
        blocks,
        block_seconds,
        warmup_seconds,
        threads,
        batch,
        mode,
        min_seconds,
        min_queries,
        copies,
        cuda_graph,
        energy,
    )
    settings.check()
    lanes = plan_lanes([Path(path) for path in paths], targets, shapes or {}, network, file_options)
    must_run = targets is not None and ALL not in targets
    machine = conditions()

    def round_ended(measured: Measured) -> None:
        if finished is not None:
            finished(_unexplained(measured, settings, machine))

    with tempfile.TemporaryDirectory(prefix="edgekit-") as cache:
        plan = Plan(lanes, settings, Path(cache), must_run, round_ended)
        with PowerMonitor(wanted=energy) as monitor:
            measure = measure_streams if mode == SINGLE_STREAM else measure_blocks
            measured = measure(plan, progress)
        power = Power.of(monitor)
        results = tuple(replace(r, energy=power.lane(r.blocks)) for r in measured.results)
        progress("profile", 0.9)
        comparisons = () if mode == SINGLE_STREAM else tuple(_compare(results, plan, machine))
    progress("done", 1.0)
    return BenchReport(
        settings, machine, measured.moments, results, comparisons, measured.skipped, power
    )


def _unexplained(measured: Measured, settings: Settings, machine: Mapping[str, Any]) -> BenchReport:
    by_name = {result.lane.name: result for result in measured.results}
    comparisons = tuple(
        Comparison.of(result, by_name[result.lane.baseline])
        for result in measured.results
        if result.lane.baseline in by_name
    )
    return BenchReport(
        settings, machine, measured.moments, measured.results, comparisons, measured.skipped
    )


def _compare(
    results: Sequence[LaneResult], plan: Plan, machine: Mapping[str, object]
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
                profiles[side.lane.name] = _profile(side, plan)
        yield _explained(comparison, profiles, machine)


def _profile(result: LaneResult, plan: Plan) -> Profiled:
    latency_ms = result.median("p50_ms").value
    if result.lane.target not in RUNNERS:  # the explanations are about CPUs
        return Profiled.of(None, latency_ms)
    least, most = _PROFILE_RUNS
    runs = min(max(int(_PROFILE_MS / latency_ms), least), most)
    return Profiled.of(profile_layers(plan.request(result.lane), runs), latency_ms)


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
