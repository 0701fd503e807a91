"""The order in which lanes run: alternating blocks, or one uninterrupted stream after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.bench.conditions import moment
from edgekit.bench.lanes import Lane
from edgekit.bench.report import LaneResult
from edgekit.bench.settings import Settings
from edgekit.errors import ConfigError, EdgekitError
from edgekit.runners.run_options import RunOptions
from edgekit.runners.timing import Block, TimingRequest, time_block, time_stream
from edgekit.types import Progress


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be timed, and how.

    Attributes:
        lanes: in their order.
        settings: of the benchmark.
        cache: folder for what runtimes build once for all blocks.
        must_run: whether a lane that cannot run here is an error.
        finished: called with what is measured, as soon as it is worth something.
    """

    lanes: Sequence[Lane]
    settings: Settings
    cache: Path
    must_run: bool
    finished: Callable[[Measured], None] | None = None

    def request(self, lane: Lane, seconds: float | None = None) -> TimingRequest:
        """Return what a process is to open and how."""
        settings = self.settings
        return TimingRequest(
            target=lane.target,
            model=lane.model,
            shapes=lane.shapes,
            batch=settings.batch,
            threads=settings.threads,
            warmup_s=settings.warmup_seconds,
            seconds=settings.block_seconds if seconds is None else seconds,
            options=RunOptions(
                copies=settings.copies,
                cuda_graph=settings.cuda_graph,
                cache=self.cache,
                network=lane.network,
                folder=Path.cwd(),
            ),
        )


@dataclass(frozen=True, slots=True)
class Measured:
    """What came out.

    Attributes:
        results: one for each lane that ran.
        moments: state of the machine before each round, and after the last.
        skipped: lane to the reason why it did not run.
    """

    results: tuple[LaneResult, ...]
    moments: tuple[Mapping[str, Any], ...]
    skipped: Mapping[str, str]


def measure_blocks(plan: Plan, progress: Progress) -> Measured:
    """Run a block of each lane in turns, every other round in the opposite order.

    Raises:
        EdgekitError: nothing runs here, or a lane that must does not.
    """
    blocks: dict[str, list[Block]] = {lane.name: [] for lane in plan.lanes}
    moments = [moment()]
    count = plan.settings.blocks

    def first(lane: Lane) -> None:
        progress(f"block 1 of {count}: {lane.name}", 0.0)
        blocks[lane.name].append(time_block(plan.request(lane)))

    running, skipped = _those_that_run(plan, first)
    for number in range(1, count):
        moments.append(moment())
        for lane in reversed(running) if number % 2 else running:
            progress(f"block {number + 1} of {count}: {lane.name}", 0.9 * number / count)
            blocks[lane.name].append(time_block(plan.request(lane)))
        if plan.finished is not None and number + 1 < count:
            plan.finished(_measured(running, blocks, [*moments, moment()], skipped))
    moments.append(moment())
    return _measured(running, blocks, moments, skipped)


def _measured(
    lanes: Sequence[Lane],
    blocks: Mapping[str, Sequence[Block]],
    moments: Sequence[Mapping[str, Any]],
    skipped: Mapping[str, str],
) -> Measured:
    results = tuple(LaneResult(lane, tuple(blocks[lane.name])) for lane in lanes)
    return Measured(results, tuple(moments), skipped)


def measure_streams(plan: Plan, progress: Progress) -> Measured:
    """Run each lane without interruption, for the shortest duration and the fewest queries.

    Raises:
        EdgekitError: nothing runs here, or a lane that must does not.
    """
    settings = plan.settings
    results: list[LaneResult] = []
    moments = []

    def run(lane: Lane) -> None:
        progress(f"single stream: {lane.name}", 0.9 * len(results) / len(plan.lanes))
        moments.append(moment())
        request = plan.request(lane, settings.min_seconds)
        stream = time_stream(request, settings.min_queries, settings.blocks)
        results.append(LaneResult(lane, stream.segments, stream))

    _, skipped = _those_that_run(plan, run)
    moments.append(moment())
    return Measured(tuple(results), tuple(moments), skipped)


def _those_that_run(
    plan: Plan, attempt: Callable[[Lane], None]
) -> tuple[list[Lane], dict[str, str]]:
    """Attempt each lane; return those that run on this machine, and the reasons of the others."""
    running: list[Lane] = []
    failures: list[EdgekitError] = []
    skipped: dict[str, str] = {}
    for lane in plan.lanes:
        try:
            attempt(lane)
            running.append(lane)
        except ConfigError:  # noqa: PERF203 - a turn takes seconds
            raise
        except EdgekitError as error:
            if plan.must_run:
                raise
            failures.append(error)
            skipped[lane.name] = error.message
    if not running:
        raise failures[0]
    return running, skipped
