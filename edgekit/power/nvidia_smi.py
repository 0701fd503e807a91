"""Reads what ``nvidia-smi`` tells about the GPUs: clocks, temperature, power and throttling.

It stands for NVML, whose values it prints. On a Jetson it is absent, or tells no more than a name.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

_TIMEOUT_S = 20.0
_FIELDS = (
    "index",
    "name",
    "pstate",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "temperature.gpu",
    "power.draw",
    "power.limit",
)
# The newer name first; drivers before 535 know the older one only.
_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
# Bits of nvml.h, nvmlClocksEventReasons.
_BITS = {
    0x1: "idle",
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal, by software",
    0x40: "thermal, by hardware",
    0x80: "power brake",
    0x100: "display clocks",
}
_HELD_BACK = 0x4 | 0x8 | 0x20 | 0x40 | 0x80


@dataclass(frozen=True, slots=True)
class GpuState:
    """One GPU now; ``None`` for what it does not tell.

    Attributes:
        index: of the driver.
        name: of the product.
        performance_state: ``"P0"`` is the fastest.
        sm_mhz, memory_mhz, max_sm_mhz: clocks, and the highest that it has.
        temperature_c: of the chip.
        power_w, power_limit_w: what it draws, and may draw.
        reasons: what holds its clocks where they are.
        throttled: whether one of these is heat, power or a brake.
    """

    index: int
    name: str
    performance_state: str | None
    sm_mhz: float | None
    memory_mhz: float | None
    max_sm_mhz: float | None
    temperature_c: float | None
    power_w: float | None
    power_limit_w: float | None
    reasons: tuple[str, ...]
    throttled: bool | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "index": self.index,
            "name": self.name,
            "performance_state": self.performance_state,
            "sm_mhz": self.sm_mhz,
            "memory_mhz": self.memory_mhz,
            "max_sm_mhz": self.max_sm_mhz,
            "temperature_c": self.temperature_c,
            "power_w": self.power_w,
            "power_limit_w": self.power_limit_w,
            "reasons": list(self.reasons),
            "throttled": self.throttled,
        }


def read_gpus(path: str | None = None) -> list[GpuState]:
    """Ask for the state of all GPUs; none where there is no ``nvidia-smi`` or it fails.

    Args:
        path: where the command is looked for; ``PATH`` of the environment if ``None``.
    """
    command = shutil.which("nvidia-smi", path=path)
    if command is None:
        return []
    for reasons in _REASONS:
        query = f"--query-gpu={','.join((*_FIELDS, reasons))}"
        try:
            run = subprocess.run(
                [command, query, "--format=csv,noheader,nounits"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return []
        if run.returncode == 0:
            return parse_gpus(run.stdout.decode("utf-8", "replace"))
    return []


def parse_gpus(text: str) -> list[GpuState]:
    """Read one line for each GPU, with the fields in the order that :func:`read_gpus` asks for."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(_FIELDS) + 1 or not cells[0].isdigit():
            continue
        bits = _bits(cells[-1])
        sm, memory, highest, temperature, power, limit = map(_number, cells[3:9])
        found.append(
            GpuState(
                int(cells[0]),
                cells[1],
                cells[2] if cells[2].startswith("P") else None,
                sm,
                memory,
                highest,
                temperature,
                power,
                limit,
                () if bits is None else throttle_reasons(bits),
                None if bits is None else bool(bits & _HELD_BACK),
            )
        )
    return found


def throttle_reasons(bits: int) -> tuple[str, ...]:
    """Return the names of the bits of NVML's clock event reasons."""
    return tuple(name for bit, name in _BITS.items() if bits & bit)


def read_power(line: str) -> dict[str, float]:
    """Return the watts in a line of ``--query-gpu=index,power.draw``; nothing for ``[N/A]``."""
    index, _, cell = line.strip().partition(",")
    watts = _number(cell.strip())
    return {} if watts is None else {f"gpu{index}": watts}


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:  # "[N/A]", "[Not Supported]"
        return None


def _bits(cell: str) -> int | None:
    try:
        return int(cell, 16)
    except ValueError:
        return None
