"""Power mode, clocks and throttling, as far as a machine tells them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from edgekit.power.nvidia_smi import read_gpus
from edgekit.power.sysfs import read_integer, read_text

_CPUS = "sys/devices/system/cpu"
_GPU_NAMES = ("gpu", "gv11b", "gp10b", "gk20a", "ga10b")
_TIMEOUT_S = 10.0
# In the types of cooling devices that lower a clock; others are fans, displays and radios.
_SLOWED = ("cpu", "gpu", "devfreq", "processor", "throttle", "emc", "powerclamp")
_MODE_LINE = re.compile(r"^NV Power Mode:\s*(\S+)\s*$", re.MULTILINE)
_MODE_ID = re.compile(r"^\s*(\d+)\s*$", re.MULTILINE)
_STATUS = re.compile(r"pmode:\s*(\d+)", re.IGNORECASE)
_MODEL = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>")


def power_mode(root: Path = Path("/"), path: str | None = None) -> dict[str, Any] | None:
    """Return ``name`` and ``id`` of a Jetson's power mode; ``None`` elsewhere.

    Modes have other numbers on every board, so the name is what counts.

    Args:
        root: where ``etc`` and ``var`` are.
        path: where ``nvpmodel`` is looked for; ``PATH`` of the environment if ``None``.
    """
    command = shutil.which("nvpmodel", path=path)
    if command is not None:
        told = parse_nvpmodel(_ask(command, "-q"))
        if told is not None:
            return told
    status = _STATUS.search(read_text(root / "var/lib/nvpmodel/status") or "")
    if status is None:
        return None
    number = int(status.group(1))
    models = dict(_MODEL.findall(read_text(root / "etc/nvpmodel.conf") or ""))
    return {"name": models.get(str(number)), "id": number}


def parse_nvpmodel(text: str) -> dict[str, Any] | None:
    """Read what ``nvpmodel -q`` prints; ``None`` if it is something else."""
    name = _MODE_LINE.search(text)
    if name is None:
        return None
    number = _MODE_ID.search(text, name.end())
    return {"name": name.group(1), "id": None if number is None else int(number.group(1))}


def _ask(*command: str) -> str:
    try:
        run = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.decode("utf-8", "replace")


def clocks_pinned(root: Path = Path("/")) -> dict[str, bool | None]:
    """Say whether the clocks of ``cpu`` and ``gpu`` can move; ``None`` where it is not told.

    They are pinned where the lowest and the highest that are allowed are the same, which is what
    ``jetson_clocks`` does.
    """
    cpus = [
        (read_integer(folder / "scaling_min_freq"), read_integer(folder / "scaling_max_freq"))
        for folder in (root / _CPUS).glob("cpu[0-9]*/cpufreq")
    ]
    gpus = [
        (read_integer(folder / "min_freq"), read_integer(folder / "max_freq"))
        for folder in _gpu_folders(root)
    ]
    return {"cpu": _all_equal(cpus), "gpu": _all_equal(gpus)}


def _all_equal(ranges: list[tuple[int | None, int | None]]) -> bool | None:
    known = [(low, high) for low, high in ranges if low is not None and high is not None]
    return all(low == high for low, high in known) if known else None


def _gpu_folders(root: Path) -> list[Path]:
    folders = (root / "sys/class/devfreq").glob("*")
    return [folder for folder in folders if folder.name.rpartition(".")[2] in _GPU_NAMES]


def gpu_mhz(root: Path = Path("/")) -> float | None:
    """Return the clock of a Jetson's GPU; ``None`` elsewhere."""
    clocks = [read_integer(folder / "cur_freq") for folder in _gpu_folders(root)]
    told = [clock / 1e6 for clock in clocks if clock is not None]
    return max(told, default=None)


def throttling(root: Path = Path("/")) -> dict[str, Any]:
    """Return what holds the machine back, or has since it was started.

    ``cpu_events`` counts thermal events of all cores and packages (x86), ``overcurrent_events``
    those of a Jetson's power supply; both only ever grow. ``cooling`` names the parts whose clocks
    are lowered now because of heat.
    """
    counters = list((root / _CPUS).glob("cpu[0-9]*/thermal_throttle/*_throttle_count"))
    events = [read_integer(path) for path in counters]
    currents = [read_integer(p) for p in (root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt")]
    return {
        "cpu_events": _sum(events),
        "overcurrent_events": _sum(currents),
        "cooling": _cooling(root),
    }


def _sum(values: list[int | None]) -> int | None:
    told = [value for value in values if value is not None]
    return sum(told) if told else None


def _cooling(root: Path) -> list[str] | None:
    devices = list((root / "sys/class/thermal").glob("cooling_device*"))
    if not devices:
        return None
    active = []
    for device in devices:
        kind, state = read_text(device / "type") or "", read_integer(device / "cur_state")
        if state is not None and state > 0 and any(p in kind.lower() for p in _SLOWED):
            active.append(kind)
    return sorted(set(active))


def gpu_states(path: str | None = None) -> list[dict[str, Any]]:
    """Return the state of each NVIDIA GPU that ``nvidia-smi`` lists."""
    return [gpu.to_dict() for gpu in read_gpus(path)]
