"""Reads the lines of ``tegrastats``, the monitor of Jetson boards.

A line holds a power for each rail, as in ``VDD_IN 4580mW/4510mW``: now, and a running mean since it
was started. Older releases leave out the unit. Boards name their rails differently; temperatures
read ``cpu@45.5C``.
"""

from __future__ import annotations

import re

_RAIL = re.compile(r"(?:^|\s)([A-Z][A-Z0-9_]*) (\d+)(?:mW)?/(\d+)(?:mW)?(?=\s|$)")
_TEMPERATURE = re.compile(r"(?:^|\s)([A-Za-z][\w.]*)@(-?\d+(?:\.\d+)?)C(?=\s|$)")
_NO_RAILS = ("RAM", "SWAP", "IRAM", "NC")  # "RAM 2456/7620MB"; a channel that is not connected
_ABSENT_C = -256.0  # a sensor whose part is switched off


def read_rails(line: str) -> dict[str, float]:
    """Return the power of each rail now, in watts; not the mean, whose start is unknown."""
    found = {}
    for name, now, _mean in _RAIL.findall(line):
        if name not in _NO_RAILS:
            found[name] = int(now) / 1e3
    return found


def read_temperatures(line: str) -> dict[str, float]:
    """Return the temperature of each sensor in degrees Celsius, without those switched off."""
    found = {name: float(value) for name, value in _TEMPERATURE.findall(line)}
    return {name: value for name, value in found.items() if value > _ABSENT_C}
