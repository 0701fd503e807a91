"""Rounds of all targets in turn, until each is decided or the budget is spent."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from edgekit.regress.rounds import Round
from edgekit.regress.sequential import ERROR_RATE, Look, Looks, Verdict
from edgekit.regress.settings import Settings
from edgekit.types import Progress, no_progress


@dataclass(frozen=True, slots=True)
class Latency:
    """How the latencies of base and head compare in one target.

    Attributes:
        verdict: of the latency alone.
        limit: ratio up to which head passes.
        looks: the estimates, of which the last one counts.
        rounds: what was measured.
        seconds: of the budget, until this target was decided.
    """

    verdict: Verdict
    limit: float
    looks: tuple[Look, ...]
    rounds: tuple[Round, ...]
    seconds: float

    @property
    def ratio(self) -> Look:
        """The estimate that counts."""
        return self.looks[-1]

    @property
    def base_ms(self) -> float:
        """Median over rounds."""
        return statistics.median(r.base_ms for r in self.rounds)

    @property
    def head_ms(self) -> float:
        """Median over rounds."""
        return statistics.median(r.head_ms for r in self.rounds)


@dataclass(slots=True)
class _Course:
    """A target while it is sampled."""

    run: Callable[[], Round]
    looks: Looks
    rounds: list[Round] = field(default_factory=list)
    longest_s: float = 0.0

    def limit(self, settings: Settings) -> float:
        return settings.limit(statistics.median(r.base_ms for r in self.rounds))

    def look(self, fraction: float, *, last: bool) -> Look:
        return self.looks.take([r.log_ratio for r in self.rounds], fraction, last=last)

    def latency(self, verdict: Verdict, settings: Settings, seconds: float) -> Latency:
        looks, rounds = tuple(self.looks.taken), tuple(self.rounds)
        return Latency(verdict, self.limit(settings), looks, rounds, seconds)


def sample(
    runs: Mapping[str, Callable[[], Round]],
    settings: Settings,
    clock: Callable[[], float],
    progress: Progress = no_progress,
) -> dict[str, Latency]:
    """Run rounds and look at them, as planned by :class:`~edgekit.regress.sequential.Looks`.

    No round is begun that would not end within the budget, going by the longest one so far; but
    each target has one.

    Args:
        runs: target to what runs one of its rounds.
        settings: the limits and the budget.
        clock: seconds.
        progress: called before each round.
    """
    rate = ERROR_RATE / len(runs)  # so that no target of the run is called a regression by chance
    courses = {name: _Course(run, Looks(rate)) for name, run in runs.items()}
    found: dict[str, Latency] = {}
    start = clock()
    while len(found) < len(courses):
        for name, course in courses.items():
            if name in found:
                continue
            elapsed = clock() - start
            if course.rounds and elapsed + course.longest_s > settings.budget_s:
                look = course.look(elapsed / settings.budget_s, last=True)
                verdict = look.conclude(course.limit(settings))
                found[name] = course.latency(verdict, settings, elapsed)
                continue
            told = f"{name}: {elapsed:.0f}/{settings.budget_s:.0f} s"
            progress(told, min(elapsed / settings.budget_s, 1.0))
            course.rounds.append(course.run())
            elapsed, before = clock() - start, elapsed
            course.longest_s = max(course.longest_s, elapsed - before)
            if course.looks.due(len(course.rounds)):
                look = course.look(elapsed / settings.budget_s, last=False)
                decided = look.decide(course.limit(settings))
                if decided is not None:
                    found[name] = course.latency(decided, settings, elapsed)
    return {name: found[name] for name in runs}


def joint_verdict(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict of several: the one that asks for most attention."""
    for verdict in (Verdict.REGRESSION, Verdict.INCONCLUSIVE, Verdict.IMPROVEMENT):
        if verdict in verdicts:
            return verdict
    return Verdict.PASS
