"""Latency regression tests: base against head, on this machine and in one run.

A latency that was recorded elsewhere or at another time tells little about a change, so both
artifacts are measured now, in turns. No torch: this also runs on devices.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from edgekit.bench.conditions import conditions, moment
from edgekit.errors import ConfigError, EdgekitError
from edgekit.regress.checks import Check, check
from edgekit.regress.contests import Plan, plan_contests
from edgekit.regress.report import RegressReport, TargetReport
from edgekit.regress.rounds import run_round
from edgekit.regress.sampling import sample
from edgekit.regress.sequential import Verdict as Verdict
from edgekit.regress.settings import Settings, parse_percent
from edgekit.types import Progress, no_progress


def regress(
    base: str | Path,
    head: str | Path,
    *,
    targets: Sequence[str] | None = None,
    tolerance: float | str = 0.05,
    floor_us: float = 5.0,
    budget_s: float = 60.0,
    round_seconds: float = 1.0,
    warmup_seconds: float = 0.1,
    percentile: float = 10.0,
    threads: int | None = None,
    batch: int = 1,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    size_tolerance: float | str = 0.01,
    min_sqnr_db: float = 20.0,
    seed: int | None = None,
    progress: Progress = no_progress,
) -> RegressReport:
    """Say whether head is slower, larger or less exact than base.

    Args:
        base: a result directory, or a model file (``.onnx``, ``.xml``, ``.plan``).
        head: the same.
        targets: the runtimes to use, which both must have and which then must work here.
        tolerance: how much slower head may be, as a part or as ``"5%"``.
        floor_us: how much slower it may be in any case, in microseconds.
        budget_s: seconds of sampling, all targets together; less where the verdict is clear.
        round_seconds: seconds in which the two take turns, in each round.
        warmup_seconds: inferences of each process before its first turn.
        percentile: which latency of a turn counts: 50 is the median, 0 the shortest.
        threads: threads of the runtimes; their own choice if ``None``.
        batch: samples in one inference, where the file leaves the choice.
        shapes: sizes of inputs, by name, where a file leaves them open.
        size_tolerance: how much larger the files may be, as a part or as ``"1%"``.
        min_sqnr_db: how close the outputs of head must be to those of base, where there is no float
            network with which both could be compared.
        seed: of the order of the turns; drawn anew if ``None``.
        progress: called before each round.

    Raises:
        ConfigError: a setting is out of range, or base and head cannot be compared.
        EdgekitError: a path cannot be read, base cannot be run here, or a process crashed.
    """
    settings = Settings(
        tolerance=parse_percent(tolerance, "tolerance"),
        floor_us=floor_us,
        budget_s=budget_s,
        round_seconds=round_seconds,
        warmup_seconds=warmup_seconds,
        percentile=percentile,
        threads=threads,
        batch=batch,
        size_tolerance=parse_percent(size_tolerance, "size_tolerance"),
        min_sqnr_db=min_sqnr_db,
        seed=secrets.randbits(32) if seed is None else seed,
    )
    plan = plan_contests(Path(base), Path(head), targets, shapes or {})
    machine, before = conditions(), moment()
    checks, skipped = _check_all(plan, settings, targets is not None, progress)
    able = [c for c in plan.contests if c.target in checks and _runs(checks[c.target])]
    coins = random.Random(settings.seed)
    runs = {c.target: partial(run_round, c, settings, coins) for c in able}
    latencies = sample(runs, settings, time.monotonic, progress) if runs else {}
    progress("done", 1.0)
    return RegressReport(
        base=str(base),
        head=str(head),
        settings=settings,
        conditions=machine,
        moments=(before, moment()),
        targets=tuple(
            TargetReport(name, found, latencies.get(name)) for name, found in checks.items()
        ),
        lost=plan.lost,
        new=plan.new,
        skipped=skipped,
    )


def _check_all(
    plan: Plan, settings: Settings, must_run: bool, progress: Progress
) -> tuple[dict[str, tuple[Check, ...]], dict[str, str]]:
    """Return the checks of the targets that run here, and why the others do not."""
    checks: dict[str, tuple[Check, ...]] = {}
    skipped: dict[str, str] = {}
    failures: list[EdgekitError] = []
    for contest in plan.contests:
        progress(f"{contest.target}: layers and outputs", 0.0)
        try:
            checks[contest.target] = check(contest, settings)
        except ConfigError:
            raise
        except EdgekitError as error:
            if must_run:
                raise
            failures.append(error)
            skipped[contest.target] = error.message
    if not checks:
        raise failures[0]
    return checks, skipped


def _runs(checks: Sequence[Check]) -> bool:
    return all(found.passed for found in checks if found.name == "runs")
