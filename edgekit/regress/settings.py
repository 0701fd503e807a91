"""What a latency regression test is to do, and within which limits."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Any

from edgekit.errors import ConfigError

_PERCENT = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*%")


@dataclass(frozen=True, slots=True)
class Settings:
    """How two artifacts are compared.

    Attributes:
        tolerance: how much slower head may be, as a part: 0.05 is 5 %.
        floor_us: how much slower it may be in any case, in microseconds; of a network that takes
            less than this divided by ``tolerance`` it is the floor that decides.
        budget_s: seconds of sampling, all targets together.
        round_seconds: seconds in which the two take turns, in each round.
        warmup_seconds: inferences of each process before its first turn.
        percentile: which latency of a turn counts: 50 is the median, 0 the shortest.
        threads: threads of the runtimes; their own choice if ``None``.
        batch: samples in one inference, where the file leaves the choice.
        size_tolerance: how much larger the files may be, as a part.
        min_sqnr_db: how close the outputs of head must be to those of base, where there is no float
            network with which both could be compared.
        seed: of the order of the turns; drawn anew for each run if ``None``.
    """

    tolerance: float = 0.05
    floor_us: float = 5.0
    budget_s: float = 60.0
    round_seconds: float = 1.0
    warmup_seconds: float = 0.1
    percentile: float = 10.0
    threads: int | None = None
    batch: int = 1
    size_tolerance: float = 0.01
    min_sqnr_db: float = 20.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("tolerance", "budget_s", "round_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be a positive number, not {getattr(self, name)}")
        for name in ("floor_us", "warmup_seconds", "size_tolerance"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be at least 0, not {getattr(self, name)}")
        if not 0 <= self.percentile <= 100:
            raise ConfigError(f"percentile must be from 0 to 100, not {self.percentile}")
        for name in ("threads", "batch"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def limit(self, base_ms: float) -> float:
        """Return the ratio up to which head passes, above 1.

        Args:
            base_ms: latency of base.
        """
        return 1 + max(self.tolerance, self.floor_us / 1e3 / base_ms)


def parse_percent(text: str | float, what: str) -> float:
    """Return a part from ``"5%"``; a number is a part already.

    Args:
        text: what the user wrote.
        what: the option, for the message.

    Raises:
        ConfigError: it is no percentage.
    """
    if not isinstance(text, str):
        return float(text)
    found = _PERCENT.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f"{what}: '{text}' is no percentage", "write it as in 5%")
    return float(found[1]) / 100
