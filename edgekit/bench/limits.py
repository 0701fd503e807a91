"""What held the machine back while a benchmark ran, from the moments that it recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_COUNTERS = {
    "cpu_events": "the processor throttled because of heat ({} events)",
    "overcurrent_events": "the power supply throttled the board ({} over-current events)",
}


def throttle_notes(moments: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say where clocks were lowered, from the states before, between and after the rounds.

    Args:
        moments: what :func:`edgekit.bench.conditions.moment` returned, in the order of time.
    """
    states = [m["throttling"] for m in moments if "throttling" in m]
    notes = []
    for counter, text in _COUNTERS.items():
        told = [state[counter] for state in states if state[counter] is not None]
        if told and told[-1] > told[0]:
            notes.append(text.format(told[-1] - told[0]))
    parts = sorted({part for state in states for part in state["cooling"] or ()})
    if parts:
        notes.append(f"clocks were lowered because of heat: {', '.join(parts)}")
    notes += _gpu_notes(moments)
    return [f"{note}: its latencies are those of a throttled machine" for note in notes]


def _gpu_notes(moments: Sequence[Mapping[str, Any]]) -> list[str]:
    reasons: dict[str, set[str]] = {}
    for moment in moments:
        for gpu in moment.get("gpus", ()):
            if gpu["throttled"]:
                name = f"GPU {gpu['index']} ({gpu['name']})"
                reasons.setdefault(name, set()).update(gpu["reasons"])
    return [f"{name} was throttled ({', '.join(sorted(r))})" for name, r in reasons.items()]
