"""What a latency regression test found. ``docs/regression.md`` documents the JSON form."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.regress.checks import Check
from edgekit.regress.sampling import Latency, joint_verdict
from edgekit.regress.sequential import ERROR_RATE, Look, Verdict
from edgekit.regress.settings import Settings

SCHEMA_VERSION = 1
_LEAST_ROUNDS = 10  # of one target; fewer have no interval at the error rate of the last look


@dataclass(frozen=True, slots=True)
class TargetReport:
    """One target.

    Attributes:
        name: the target.
        checks: what must not get worse beside the latency.
        latency: how the latencies compare; ``None`` where head does not run.
    """

    name: str
    checks: tuple[Check, ...]
    latency: Latency | None

    @property
    def verdict(self) -> Verdict:
        """Regression where a check fails, else that of the latency."""
        if self.latency is None or not all(check.passed for check in self.checks):
            return Verdict.REGRESSION
        return self.latency.verdict

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the verdict is neither pass nor improvement."""
        failed = [check.text for check in self.checks if not check.passed]
        if self.latency is not None and self.latency.verdict is Verdict.REGRESSION:
            failed.insert(0, f"latency is {describe_ratio(self.latency.ratio)} times that of base")
        elif self.latency is not None and self.latency.verdict is Verdict.INCONCLUSIVE:
            failed.append(_undecided(self.latency))
        return tuple(failed)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "verdict": self.verdict.value,
            "reasons": list(self.reasons),
            "latency": None if self.latency is None else _latency(self.latency),
            "checks": [check.to_dict() for check in self.checks],
        }


@dataclass(frozen=True, slots=True)
class RegressReport:
    """Everything that ``edgekit regress`` found.

    Attributes:
        base, head: what was compared.
        settings: how.
        conditions: the machine and its software.
        moments: load, clock and temperature before and after.
        targets: what was compared, target by target.
        lost: targets that base has and head lacks, which is a regression.
        new: targets that head has and base lacks.
        skipped: what cannot run here, with the reason, by target.
    """

    base: str
    head: str
    settings: Settings
    conditions: Mapping[str, Any]
    moments: Sequence[Mapping[str, Any]]
    targets: tuple[TargetReport, ...]
    lost: tuple[str, ...]
    new: tuple[str, ...]
    skipped: Mapping[str, str]

    @property
    def verdict(self) -> Verdict:
        """The one of all targets that asks for most attention."""
        if self.lost:
            return Verdict.REGRESSION
        return joint_verdict([target.verdict for target in self.targets])

    def failed(self, *, strict: bool = False) -> bool:
        """Whether a gate is to stop: on a regression, and with ``strict`` on no decision."""
        stops = (Verdict.REGRESSION, Verdict.INCONCLUSIVE) if strict else (Verdict.REGRESSION,)
        return self.verdict in stops

    def target(self, name: str) -> TargetReport:
        """Return a target by name."""
        return next(target for target in self.targets if target.name == name)

    @property
    def notes(self) -> tuple[str, ...]:
        """What else must be known."""
        return tuple(self._notes())

    def _notes(self) -> Iterator[str]:
        yield from (f"{name}: head holds no such target" for name in self.lost)
        yield from (f"{name}: new in head, nothing to compare it with" for name in self.new)
        yield from (f"{name}: not compared: {reason}" for name, reason in self.skipped.items())
        cores = int(self.conditions["cpu"]["cores"])
        loads = [m["load_average"] for m in self.moments if m["load_average"] is not None]
        if loads and min(loads) > cores:
            yield (
                f"other work kept the machine busy (load {min(loads):g} to {max(loads):g} on "
                f"{cores} cores): trust ratios, not milliseconds"
            )
        limit = self.conditions["cpu_limit_cores"]
        if limit is not None and limit < cores:
            yield (
                f"this container may use {limit:g} of {cores} cores, which runtimes do not see: "
                f"try --threads {max(int(limit), 1)}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "verdict": self.verdict.value,
            "base": self.base,
            "head": self.head,
            "settings": self.settings.to_dict(),
            "targets": {target.name: target.to_dict() for target in self.targets},
            "lost": list(self.lost),
            "new": list(self.new),
            "skipped": dict(self.skipped),
            "conditions": dict(self.conditions),
            "moments": [dict(moment) for moment in self.moments],
            "notes": list(self.notes),
        }


def describe_ratio(look: Look) -> str:
    """Return a ratio with its interval for people."""
    low, high = (
        "?" if bound is None else f"{bound:.3f}"
        for bound in (look.to_dict()["low"], look.to_dict()["high"])
    )
    return f"{look.value:.3f} [{low}, {high}]"


def _latency(latency: Latency) -> dict[str, Any]:
    ratio = latency.ratio.to_dict()
    return {
        "verdict": latency.verdict.value,
        "ratio": {name: ratio[name] for name in ("value", "low", "high")},
        "confidence": 1 - 2 * ERROR_RATE,
        "limit": latency.limit,
        "base_ms": latency.base_ms,
        "head_ms": latency.head_ms,
        "seconds": latency.seconds,
        "looks": [look.to_dict() for look in latency.looks],
        "rounds": [r.to_dict() for r in latency.rounds],
    }


def _undecided(latency: Latency) -> str:
    count, seconds = len(latency.rounds), latency.seconds
    if latency.ratio.low == 0:
        needed = math.ceil(_LEAST_ROUNDS * seconds / count)
        what = "1 round is" if count == 1 else f"{count} rounds are"
        return (
            f"{what} too few for an interval, and took {seconds:.0f} s; --budget {needed} would do"
        )
    return (
        f"the interval {describe_ratio(latency.ratio)} reaches over the limit of "
        f"{latency.limit:.3f}; a larger --budget or a quieter machine would tell"
    )
