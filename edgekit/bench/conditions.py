"""What a latency was measured under. A figure without it cannot be compared with any other."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekit.environment import cpu_description, package_versions
from edgekit.power.machine import clocks_pinned, gpu_mhz, gpu_states, power_mode, throttling

_VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "MKL_NUM_THREADS",
    "ONEDNN_MAX_CPU_ISA",
    "LD_PRELOAD",
)
_CPUS = "sys/devices/system/cpu"
_UNLIMITED = 1 << 60  # version 1 of control groups writes "no limit" as a huge number


def conditions(root: Path = Path("/")) -> dict[str, Any]:
    """Describe the machine, its settings and its software.

    Args:
        root: where ``proc`` and ``sys`` are mounted.

    Returns:
        Plain JSON values; ``None`` for what this system does not tell.
    """
    cpu = cpu_description()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": {**cpu, "machine": platform.machine()},
        "governor": _text(root / _CPUS / "cpu0/cpufreq/scaling_governor"),
        "turbo": _turbo(root),
        "power_mode": power_mode(root),
        "clocks_pinned": clocks_pinned(root),
        "virtual_machine": _is_virtual(root),
        "cpu_limit_cores": _cpu_limit(root),
        "memory_limit_bytes": _memory_limit(root),
        "memory_bytes": _memory(),
        "kernel": platform.release(),
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "versions": package_versions(),
    }


def moment(root: Path = Path("/")) -> dict[str, Any]:
    """Return what changes while a benchmark runs: load, clocks, temperature and throttling."""
    return {
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "cpu_mhz": _megahertz(root),
        "temperature_c": _temperature(root),
        "gpu_mhz": gpu_mhz(root),
        "gpus": gpu_states(),
        "throttling": throttling(root),
    }


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.lstrip("-").isdigit() else None


def _turbo(root: Path) -> bool | None:
    stopped = _number(root / _CPUS / "intel_pstate/no_turbo")
    if stopped is not None:
        return stopped == 0
    boost = _number(root / _CPUS / "cpufreq/boost")
    return None if boost is None else boost == 1


def _is_virtual(root: Path) -> bool | None:
    text = _text(root / "proc/cpuinfo")
    return None if text is None else " hypervisor" in text


def _megahertz(root: Path) -> float | None:
    told = [_number(p) for p in root.glob(f"{_CPUS}/cpu[0-9]*/cpufreq/scaling_cur_freq")]
    clocks = [value / 1e3 for value in told if value is not None]
    if not clocks:
        lines = (_text(root / "proc/cpuinfo") or "").splitlines()
        clocks = [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
    return round(sum(clocks) / len(clocks), 1) if clocks else None


def _temperature(root: Path) -> float | None:
    told = [_number(path) for path in root.glob("sys/class/thermal/thermal_zone*/temp")]
    return max((value / 1e3 for value in told if value is not None), default=None)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the control groups of this process that may limit it, both versions of the system."""
    top = root / "sys/fs/cgroup"
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, inner = line.split(":", 2)
        own = top / controller if controller in controllers.split(",") else top
        if controllers and own == top:
            continue
        folder = own / inner.lstrip("/")
        # A limit may stand at any level above; in a container the outer part is not visible.
        yield from (path for path in (folder, *folder.parents) if path.is_relative_to(own))


def _cpu_limit(root: Path) -> float | None:
    limits = []
    for folder in _groups(root, "cpu"):
        quota, _, period = (_text(folder / "cpu.max") or "max").partition(" ")
        if quota != "max":
            limits.append(int(quota) / int(period))
        old, old_period = (
            _number(folder / "cpu.cfs_quota_us"),
            _number(folder / "cpu.cfs_period_us"),
        )
        if old is not None and old > 0 and old_period:
            limits.append(old / old_period)
    return min(limits, default=None)


def _memory_limit(root: Path) -> int | None:
    names = ("memory.max", "memory.limit_in_bytes")
    told = [_number(folder / name) for folder in _groups(root, "memory") for name in names]
    return min((value for value in told if value is not None and value < _UNLIMITED), default=None)


def _memory() -> int | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
