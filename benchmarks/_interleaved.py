"""Latencies of several artifacts in interleaved blocks, and intervals of their ratios.

Every block is a process of its own, so that chance in loading (memory layout, thread placement)
counts as what it is: variation between blocks. Blocks of all artifacts alternate, each round in
the opposite order, so that a slow drift of the machine cancels in the ratios.
"""

from __future__ import annotations

import os
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks._process import run_step

_BLOCK_S = 0.5
_RESAMPLES = 5000
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Lane:
    """An artifact to time: what opens it, and the file."""

    runtime: str
    path: str


@dataclass(frozen=True, slots=True)
class Ratio:
    """Median over blocks of the ratio of two medians, with a bootstrap interval over blocks."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Return plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def measure_lanes(
    lanes: Mapping[str, Lane],
    request: Mapping[str, Any],
    blocks: int,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Time all lanes.

    Args:
        lanes: artifacts by name.
        request: ``case`` and ``data`` for :mod:`benchmarks._latency`.
        blocks: number of blocks of each lane.
        progress: called with a line before each round.

    Returns:
        For each lane its blocks in order; and the load average before each round.

    Raises:
        StepError: an artifact cannot be timed.
    """
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in lanes}
    loads = []
    for block in range(blocks):
        progress(f"latency, block {block + 1} of {blocks}")
        loads.append(round(os.getloadavg()[0], 2))
        for name in sorted(lanes, reverse=block % 2 == 1):
            lane = lanes[name]
            step = {"runtime": lane.runtime, "path": lane.path, "seconds": _BLOCK_S}
            measured[name].append(run_step("_latency", {**request, **step}))
    return {"blocks": measured, "load_average": loads}


def ratio(numerator: Sequence[float], denominator: Sequence[float], seed: int = 0) -> Ratio:
    """Compare two lanes block by block.

    Args:
        numerator: medians of the blocks of one lane, ms.
        denominator: those of the other, in the same order.
        seed: seed of the resampling.
    """
    ratios = [a / b for a, b in zip(numerator, denominator, strict=True)]
    generator = random.Random(seed)
    medians = sorted(
        statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(_RESAMPLES)
    )
    cut = round(_RESAMPLES * (1 - _CONFIDENCE) / 2)
    return Ratio(statistics.median(ratios), medians[cut], medians[-cut - 1])
