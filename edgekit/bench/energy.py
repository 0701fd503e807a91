"""Energy of an inference: what was drawn in each block, divided by its inferences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.bench.intervals import Estimate, mean_over_blocks
from edgekit.power.energy import Samples
from edgekit.power.monitor import PowerMonitor
from edgekit.runners.timing import Block


@dataclass(frozen=True, slots=True)
class LaneEnergy:
    """Energy of one lane.

    Attributes:
        joules: of an inference, all that the counted rails carry.
        above_idle_joules: less what the idle machine draws in the same time; ``None`` where that
            is not known.
        mean_w: power in the blocks.
        samples: of the blocks together.
        reason: why there is no figure.
    """

    joules: Estimate | None = None
    above_idle_joules: Estimate | None = None
    mean_w: float | None = None
    samples: int = 0
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        above = self.above_idle_joules
        return {
            "joules_per_inference": None if self.joules is None else self.joules.to_dict(),
            "above_idle_joules_per_inference": None if above is None else above.to_dict(),
            "mean_w": self.mean_w,
            "samples": self.samples,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class Power:
    """Samples of a benchmark, or the reason why there are none.

    Attributes:
        samples: of all rails.
        idle_w: what the machine drew before the first block.
        reason: why nothing was sampled.
    """

    samples: Samples
    idle_w: float | None = None
    reason: str | None = None

    @classmethod
    def of(cls, monitor: PowerMonitor) -> Power:
        """Read a monitor that has ended."""
        span = monitor.idle_span
        idle = None if span is None else monitor.samples.between(*span)
        idle_w = None if idle is None else idle.joules / idle.seconds
        return cls(monitor.samples, idle_w, monitor.reason)

    def lane(self, blocks: Sequence[Block]) -> LaneEnergy:
        """Return the energy of an inference in some blocks."""
        if self.reason is not None:
            return LaneEnergy(reason=self.reason)
        found = [
            (block.runs, energy)
            for block in blocks
            for energy in [self.samples.between(block.begin_s, block.end_s)]
            if energy is not None
        ]
        if len(found) < 2:
            return LaneEnergy(reason="too few samples in a block: give --seconds 2 or more")
        joules = [energy.joules / runs for runs, energy in found]
        above = None
        if self.idle_w is not None:
            above = mean_over_blocks(
                [(energy.joules - self.idle_w * energy.seconds) / runs for runs, energy in found]
            )
        seconds = sum(energy.seconds for _, energy in found)
        return LaneEnergy(
            mean_over_blocks(joules),
            above,
            sum(energy.joules for _, energy in found) / seconds,
            sum(energy.samples for _, energy in found),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        totals = self.samples.totals()
        return {
            "sources": [
                {
                    "name": source,
                    "rails": list(rails),
                    "counted": list(totals[source].rails),
                    "whole_board": totals[source].whole_board,
                    "interval_s": _interval(next(iter(rails.values())).times),
                }
                for source, rails in self.samples.series.items()
            ],
            "idle_w": self.idle_w,
            "reason": self.reason,
        }


def _interval(times: np.ndarray) -> float | None:
    return round(float(np.median(np.diff(times))), 6) if len(times) > 1 else None
