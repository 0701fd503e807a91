"""The figures of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgekit.bench.energy import LaneEnergy, Power
from edgekit.bench.explain import Reason
from edgekit.bench.intervals import (
    Estimate,
    mean_over_blocks,
    median_over_blocks,
    ratio_over_blocks,
)
from edgekit.bench.lanes import FILE, FLOAT, Lane
from edgekit.bench.limits import throttle_notes
from edgekit.bench.settings import BLOCKS, SINGLE_STREAM, Settings
from edgekit.power.energy import Samples
from edgekit.runners.timing import Block, Stream

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class LaneResult:
    """One lane and its blocks, in the order of the rounds; in a single stream, its parts."""

    lane: Lane
    blocks: tuple[Block, ...]
    stream: Stream | None = None
    energy: LaneEnergy = field(default_factory=LaneEnergy)

    def median(self, figure: str) -> Estimate:
        """Return the median over blocks of one of the attributes of :class:`Block`."""
        return median_over_blocks([float(getattr(block, figure)) for block in self.blocks])

    @property
    def throughput(self) -> Estimate:
        """Inferences in a second, one after the other."""
        return mean_over_blocks([1e3 / block.mean_ms for block in self.blocks])

    @property
    def peak_memory_bytes(self) -> int | None:
        """Largest resident size of the process; ``None`` where the system does not tell."""
        return max((b.peak_memory_bytes or 0 for b in self.blocks), default=0) or None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        cold = ("cold_start_ms", "process_ms", "load_ms", "first_ms")
        latencies = ("p50_ms", "p90_ms", "p99_ms", "mean_ms")
        return {
            "name": self.lane.name,
            "source": str(self.lane.source),
            "target": self.lane.target,
            "precision": self.lane.precision,
            "model": str(self.lane.model),
            "size_bytes": self.lane.size_bytes,
            "inputs": dict(self.blocks[0].inputs),
            "versions": dict(self.blocks[0].versions),
            "runs": sum(block.runs for block in self.blocks),
            "latency": {name: self.median(name).to_dict() for name in latencies},
            "min_ms": min(block.min_ms for block in self.blocks),
            "max_ms": max(block.max_ms for block in self.blocks),
            "throughput_per_s": self.throughput.to_dict(),
            "busy_cores": self.median("busy_cores").value,
            "cold_start": {name: self.median(name).to_dict() for name in cold},
            "peak_memory_bytes": self.peak_memory_bytes,
            "setup": dict(self.blocks[0].setup),
            "device_ms": self._device_ms(),
            "energy": self.energy.to_dict(),
            "single_stream": self._stream(),
            "blocks": [block.to_dict() for block in self.blocks],
        }

    def _device_ms(self) -> dict[str, float] | None:
        told = [block.device_ms for block in self.blocks if block.device_ms is not None]
        return median_over_blocks(told).to_dict() if told else None

    def _stream(self) -> dict[str, Any] | None:
        if self.stream is None:
            return None
        stopping = self.stream.early_stopping.to_dict()
        return {"duration_s": self.stream.duration_s, **stopping}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Latency of a lane divided by that of its baseline; below 1 the lane is faster.

    Attributes:
        lane, baseline: names of the lanes.
        ratio: median over rounds of the ratio of medians.
        reasons: why it is not faster; empty if it is.
        groups: count and time of each kind of layer of the two lanes, by name of the lane; empty
            if no profile was needed.
    """

    lane: str
    baseline: str
    ratio: Estimate
    reasons: tuple[Reason, ...] = ()
    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, result: LaneResult, baseline: LaneResult) -> Comparison:
        """Compare two lanes round by round."""
        above, below = ([b.p50_ms for b in side.blocks] for side in (result, baseline))
        return cls(result.lane.name, baseline.lane.name, ratio_over_blocks(above, below))

    @property
    def verdict(self) -> str:
        """``"faster"`` or ``"slower"`` where the whole interval says so, else ``"unclear"``."""
        if self.ratio.high < 1:
            return "faster"
        return "slower" if self.ratio.low > 1 else "unclear"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "lane": self.lane,
            "baseline": self.baseline,
            "ratio": self.ratio.to_dict(),
            "verdict": self.verdict,
            "reasons": [reason.to_dict() for reason in self.reasons],
            "groups": {name: dict(group) for name, group in self.groups.items()},
        }


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Everything that ``edgekit bench`` measured. ``docs/bench.md`` documents the JSON form.

    Attributes:
        settings: how it was measured.
        conditions: the machine and its software.
        rounds: load, clock and temperature before each round, and after the last.
        lanes: what was timed.
        comparisons: INT8 against float, or a file against the first one.
        skipped: what was not timed, with the reason, by name.
        power: samples of power, or why there are none.
    """

    settings: Settings
    conditions: Mapping[str, Any]
    rounds: Sequence[Mapping[str, Any]]
    lanes: tuple[LaneResult, ...]
    comparisons: tuple[Comparison, ...]
    skipped: Mapping[str, str]
    power: Power = field(default_factory=lambda: Power(Samples((), {}), reason="not asked for"))

    def lane(self, name: str) -> LaneResult:
        """Return a lane by name."""
        return next(result for result in self.lanes if result.lane.name == name)

    @property
    def notes(self) -> tuple[str, ...]:
        """What limits the figures."""
        notes = [f"{name}: not timed: {reason}" for name, reason in self.skipped.items()]
        if self.settings.mode == SINGLE_STREAM:
            notes += self._stream_notes()
        else:
            notes += self._lonely_notes()
        notes += throttle_notes(self.rounds)
        cores = int(self.conditions["cpu"]["cores"])
        loads = [r["load_average"] for r in self.rounds if r["load_average"] is not None]
        if loads and min(loads) > cores:
            notes.append(
                f"other work kept the machine busy (load {min(loads):g} to {max(loads):g} on "
                f"{cores} cores): trust ratios, not milliseconds"
            )
        limit = self.conditions["cpu_limit_cores"]
        if limit is not None and limit < cores:
            notes.append(
                f"this container may use {limit:g} of {cores} cores, which runtimes do not see: "
                f"try --threads {max(int(limit), 1)}"
            )
        if any(block.runs < 100 for result in self.lanes for block in result.blocks):
            notes.append("a block has fewer than 100 runs: its p99 is close to its slowest run")
        return tuple(notes)

    def _lonely_notes(self) -> list[str]:
        compared = {comparison.lane for comparison in self.comparisons}
        return [
            f"{name}: nothing to compare with, the float network does not run in this runtime here"
            for name in (r.lane.name for r in self.lanes if r.lane.precision not in (FLOAT, FILE))
            if name not in compared
        ]

    def _stream_notes(self) -> list[str]:
        notes = []
        if len(self.lanes) > 1:
            notes.append(
                "single streams follow one another, so what changed in between is in their "
                f"difference: to compare, use --mode {BLOCKS}"
            )
        for result in self.lanes:
            assert result.stream is not None
            stopping = result.stream.early_stopping
            if stopping.estimate_ms is None:
                notes.append(
                    f"{result.lane.name}: {stopping.queries} queries are too few for an estimate, "
                    f"{stopping.queries_needed} are needed: give --min-queries"
                )
        return notes

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "settings": self.settings.to_dict(),
            "conditions": dict(self.conditions),
            "rounds": [dict(entry) for entry in self.rounds],
            "power": self.power.to_dict(),
            "lanes": [result.to_dict() for result in self.lanes],
            "comparisons": [comparison.to_dict() for comparison in self.comparisons],
            "skipped": dict(self.skipped),
            "notes": list(self.notes),
        }
