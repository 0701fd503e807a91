"""The percentile that a short run may claim: early stopping of MLPerf Inference.

A run of few queries may by luck hold too few slow ones, so its own percentile can be too small. The
estimate is the smallest latency of the run that is, with a confidence of 99 %, not below the true
percentile: a run pays for its shortness.

Reference: "MLPerf Inference Rules", appendix "Early Stopping Criterion", and LoadGen's
``early_stopping.cc`` and ``results.cc`` (mlcommons/inference), where the same probability is a
regularized incomplete beta function: I_p(h, t + 1) is the chance of t or fewer slow queries among
h + t, of which each is slow with the probability 1 - p.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

PERCENTILE = 0.9  # of the single-stream scenario
CONFIDENCE = 0.99


@dataclass(frozen=True, slots=True)
class EarlyStopping:
    """The estimate and where it comes from.

    Attributes:
        percentile: which one, as a part.
        confidence: that the true one is not above the estimate.
        queries: of the run.
        queries_needed: the fewest for which there is an estimate.
        measured_ms: the run's own percentile.
        discarded: slowest queries above the estimate; ``None`` where there is none.
        estimate_ms: the figure to report; ``None`` where the run is too short.
    """

    percentile: float
    confidence: float
    queries: int
    queries_needed: int
    measured_ms: float
    discarded: int | None
    estimate_ms: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "percentile": self.percentile,
            "confidence": self.confidence,
            "queries": self.queries,
            "queries_needed": self.queries_needed,
            "measured_ms": self.measured_ms,
            "discarded": self.discarded,
            "estimate_ms": self.estimate_ms,
        }


def estimate(
    times_ns: Sequence[int], percentile: float = PERCENTILE, confidence: float = CONFIDENCE
) -> EarlyStopping:
    """Estimate a percentile of the latencies of a run.

    Args:
        times_ns: latency of each query, in nanoseconds.
        percentile: which one, as a part.
        confidence: that the true one is not above the estimate.
    """
    ordered = np.sort(np.asarray(times_ns, np.int64))
    queries = len(ordered)
    allowed = slow_queries_allowed(queries, percentile, confidence)
    # LoadGen takes the element at the percentile, without interpolation.
    measured = float(ordered[min(int(queries * percentile), queries - 1)]) / 1e6
    found = None if allowed is None else float(ordered[queries - allowed]) / 1e6
    return EarlyStopping(
        percentile,
        confidence,
        queries,
        queries_needed(percentile, confidence),
        measured,
        None if allowed is None else allowed - 1,
        found,
    )


def slow_queries_allowed(queries: int, percentile: float, confidence: float) -> int | None:
    """Return the largest number of slow queries with which a run would still pass.

    It is the largest t for which t or fewer slow queries among all have a probability of at most
    1 - confidence if each is slow with the probability 1 - percentile.

    Args:
        queries: of the run.
        percentile: as a part.
        confidence: as a part.

    Returns:
        At least 1; ``None`` where not even that passes: the run is too short.
    """
    slow = math.log1p(-percentile) - math.log(percentile)
    log_term = queries * math.log(percentile)  # no slow query at all
    total = math.exp(log_term)
    allowed = 0
    while allowed < queries:
        log_term += math.log(queries - allowed) - math.log(allowed + 1) + slow
        total += math.exp(log_term)
        if total > 1 - confidence:
            break
        allowed += 1
    return allowed if allowed >= 1 else None


def queries_needed(percentile: float = PERCENTILE, confidence: float = CONFIDENCE) -> int:
    """Return the fewest queries for which there is an estimate: 64 for a p90 and 99 %."""
    queries = 2
    while slow_queries_allowed(queries, percentile, confidence) is None:
        queries += 1
    return queries
