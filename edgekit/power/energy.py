"""Energy between two moments, from raw samples of powers and of counters."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from edgekit.power.rails import JOULE, Source, Total, total_of

_LEAST_SAMPLES = 3
"""Of each rail between the two moments: with fewer, a trapezoid is mostly extrapolation."""


@dataclass(frozen=True, slots=True)
class Series:
    """Samples of one rail: ``times [n]`` in seconds, ``values [n]`` in watts or joules."""

    times: np.ndarray
    values: np.ndarray


@dataclass(frozen=True, slots=True)
class Energy:
    """What was used between two moments.

    Attributes:
        joules: of the rails that count.
        seconds: between the moments.
        samples: in between, of the rail with the fewest.
    """

    joules: float
    seconds: float
    samples: int


@dataclass(frozen=True, slots=True)
class Samples:
    """All samples of a run.

    Attributes:
        sources: what was read.
        series: name of a source to name of a rail to its samples, in the order of time.
    """

    sources: tuple[Source, ...]
    series: Mapping[str, Mapping[str, Series]]

    @classmethod
    def parse(cls, sources: tuple[Source, ...], lines: Iterable[str]) -> Samples:
        """Read the lines that :mod:`edgekit.power.sampler` writes; a cut one at the end is left."""
        found: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
        for line in lines:
            if not line.endswith("\n"):
                continue
            data = json.loads(line)
            for rail, value in data["values"].items():
                times, values = found.setdefault(data["source"], {}).setdefault(rail, ([], []))
                times.append(float(data["t"]))
                values.append(float(value))
        series = {
            source: {
                rail: Series(np.asarray(times), np.asarray(values))
                for rail, (times, values) in rails.items()
            }
            for source, rails in found.items()
        }
        return cls(sources, series)

    def totals(self) -> dict[str, Total]:
        """Return which rails of each source count."""
        return {source: total_of(source, list(rails)) for source, rails in self.series.items()}

    def between(self, begin_s: float, end_s: float) -> Energy | None:
        """Return the energy between two moments; ``None`` where too few samples lie in between."""
        totals = self.totals()
        if not totals:
            return None
        joules, counts = 0.0, []
        for source, total in totals.items():
            for rail in total.rails:
                series = self.series[source][rail]
                inside = int(np.sum((series.times >= begin_s) & (series.times <= end_s)))
                if inside < _LEAST_SAMPLES:
                    return None
                counts.append(inside)
                joules += self._joules(source, rail, begin_s, end_s)
        return Energy(joules, end_s - begin_s, min(counts))

    def _joules(self, source: str, rail: str, begin_s: float, end_s: float) -> float:
        series = self.series[source][rail]
        known = {
            r.name: r for s in self.sources if s.name == source for r in s.rails
        }  # rails of commands are powers
        if rail in known and known[rail].unit == JOULE:
            return counted_joules(series, known[rail].wraps_at, begin_s, end_s)
        return integrated_joules(series, begin_s, end_s)


def integrated_joules(series: Series, begin_s: float, end_s: float) -> float:
    """Integrate a power by trapezoids; at both ends it is interpolated, outside it stays constant.

    Args:
        series: watts.
        begin_s: the first moment.
        end_s: the second.
    """
    inside = (series.times > begin_s) & (series.times < end_s)
    times = np.concatenate([[begin_s], series.times[inside], [end_s]])
    watts = np.interp(times, series.times, series.values)
    return float(np.sum(np.diff(times) * (watts[1:] + watts[:-1]) / 2))


def counted_joules(series: Series, wraps_at: float | None, begin_s: float, end_s: float) -> float:
    """Return how far a counter went, interpolated at both ends.

    Args:
        series: joules since some moment, starting again from zero at ``wraps_at``.
        wraps_at: largest value of the counter; ``None`` if it does not wrap.
        begin_s: the first moment.
        end_s: the second.
    """
    steps = np.diff(series.values)
    if wraps_at is not None:
        steps = np.where(steps < 0, steps + wraps_at, steps)
    counted = np.concatenate([[0.0], np.cumsum(steps)])
    begin, end = np.interp([begin_s, end_s], series.times, counted)
    return float(end - begin)
