"""What a mixed allocation of bit widths may cost: accuracy, bytes or time. No torch here."""

from __future__ import annotations

import enum
import math
import re
from dataclasses import dataclass

from edgekit.errors import ConfigError

_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_UNITS = {
    "b": 1.0,
    "kb": 1e3,
    "mb": 1e6,
    "gb": 1e9,
    "kib": 2.0**10,
    "mib": 2.0**20,
    "gib": 2.0**30,
}


class BudgetKind(str, enum.Enum):
    """What is bounded."""

    DROP = "drop"
    SIZE = "size"
    SHARE = "share"
    LATENCY = "latency"


@dataclass(frozen=True, slots=True)
class Budget:
    """One bound.

    Attributes:
        kind: what is bounded.
        value: points of accuracy; bytes; a share of the float network's bytes; milliseconds.
    """

    kind: BudgetKind
    value: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.value) or self.value <= 0:
            raise ConfigError(f"--max-{self.kind.value} {self.value:g}: expected more than 0")

    def __str__(self) -> str:
        shown = {
            BudgetKind.DROP: f"--max-drop {self.value:g}",
            BudgetKind.SIZE: f"--max-size {self.value:.0f}B",
            BudgetKind.SHARE: f"--max-size {self.value:g}x",
            BudgetKind.LATENCY: f"--max-latency {self.value:g}ms",
        }
        return shown[self.kind]


DEFAULT_BUDGET = Budget(BudgetKind.DROP, 1.0)


def check_budget(scheme: str, budget: Budget | None) -> None:
    """Refuse a budget where nothing is allocated under it.

    Raises:
        ConfigError: the scheme states all widths.
    """
    if budget is not None and scheme != "mixed":
        raise ConfigError(
            f"{budget}: scheme '{scheme}' states the bits of all layers",
            "give --scheme mixed with it",
        )


def parse_budget(
    *, max_drop: float | None = None, max_size: str | None = None, max_latency: str | None = None
) -> Budget | None:
    """Return the bound that the options state, ``None`` if they state none.

    Args:
        max_drop: points of accuracy.
        max_size: bytes as in ``900kB`` or ``1.2MB``, or a share of the float bytes as in ``0.2x``.
        max_latency: time of one inference as in ``5ms``.

    Raises:
        ConfigError: two are given, or one has another form.
    """
    given = [
        name
        for name, value in (("drop", max_drop), ("size", max_size), ("latency", max_latency))
        if value is not None
    ]
    if len(given) > 1:
        raise ConfigError(
            f"--max-{given[0]} and --max-{given[1]}: give one",
            "bound the one that matters, and read what the result says of the other",
        )
    if max_drop is not None:
        return Budget(BudgetKind.DROP, max_drop)
    if max_size is not None:
        return _size(max_size)
    if max_latency is not None:
        return _latency(max_latency)
    return None


def _size(text: str) -> Budget:
    match = re.fullmatch(rf"{_NUMBER}\s*([a-zA-Z]*)", text.strip())
    unit = match.group(2).lower() if match else ""
    if match is None or (unit != "x" and unit not in _UNITS):
        raise ConfigError(
            f"--max-size '{text}': expected a size or a share of the float network",
            "examples: 900kB, 1.2MB, 0.2x",
        )
    number = float(match.group(1))
    if unit == "x":
        return Budget(BudgetKind.SHARE, number)
    return Budget(BudgetKind.SIZE, number * _UNITS[unit])


def _latency(text: str) -> Budget:
    match = re.fullmatch(rf"{_NUMBER}\s*(ms|us|s)", text.strip())
    if match is None:
        raise ConfigError(f"--max-latency '{text}': expected a time", "examples: 5ms, 800us")
    factor = {"us": 1e-3, "ms": 1.0, "s": 1e3}[match.group(2)]
    return Budget(BudgetKind.LATENCY, float(match.group(1)) * factor)
