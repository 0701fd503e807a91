"""What can be read about power here: rails in the kernel's files, and commands that print them.

A *source* is read as a whole and has one or more rails. The sensors of a Jetson's board come first
(kernel.org, hwmon: ``ina3221``, ``ina238``), then ``tegrastats``, which prints the same ones. On
other machines RAPL counts the energy of the processor and its memory (kernel.org, powercap), and
``nvidia-smi`` prints the power of the GPUs.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.power.sysfs import read_integer, read_text

WATT, JOULE = "W", "J"
HWMON, RAPL = "sys/class/hwmon", "sys/class/powercap"
_CHANNELS = (1, 2, 3)  # of an INA3221; its in7 is a sum of shunt voltages, no supply
# Rails that carry all others: Orin NX and Nano, the carrier of Thor, Nano and TX2, Xavier NX.
_BOARD_RAILS = ("VDD_IN", "VIN", "POM_5V_IN")
_PLATFORM = "psys"
_POWER_CHIPS = ("ina238", "ina237", "ina233", "ina226", "ina219")


@dataclass(frozen=True, slots=True)
class Rail:
    """One supply.

    Attributes:
        name: as the system calls it.
        unit: ``"W"`` for a power, ``"J"`` for a counter of energy.
        files: what its value is computed from: a power or energy in millionths, or a voltage and
            a current in thousandths. None for a rail that a command prints.
        wraps_at: value at which a counter starts again from zero.
    """

    name: str
    unit: str
    files: tuple[str, ...] = ()
    wraps_at: float | None = None

    def read(self) -> float | None:
        """Return watts or joules now; ``None`` where a file cannot be read."""
        values = [read_integer(Path(file)) for file in self.files]
        product = 1.0
        for value in values:
            if value is None:
                return None
            product *= value
        return product / 1e6 if values else None


@dataclass(frozen=True, slots=True)
class Source:
    """Rails that are read together.

    Attributes:
        name: ``"hwmon"``, ``"tegrastats"``, ``"rapl"`` or ``"nvidia-smi"``.
        rails: what it tells; empty for a command, whose lines say it.
        command: what prints the values line by line; empty where they are files.
    """

    name: str
    rails: tuple[Rail, ...] = ()
    command: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Total:
    """The rails whose sum counts, and whether they carry the whole board."""

    rails: tuple[str, ...]
    whole_board: bool


def total_of(source: str, names: Sequence[str]) -> Total:
    """Say which rails of a source are summed.

    A Jetson has a rail that carries all others, or, like AGX Orin, only parts of the module, whose
    sum leaves out the carrier board.

    Args:
        source: its name.
        names: its rails.
    """
    if source == "nvidia-smi":
        return Total(tuple(names), False)
    if source == "rapl":
        if _PLATFORM in names:
            return Total((_PLATFORM,), True)
        # Cores and graphics are parts of their package; memory is not.
        outer = [name for name in names if ":" not in name or name.endswith(":dram")]
        return Total(tuple(outer or names), False)
    for board in _BOARD_RAILS:
        if board in names:
            return Total((board,), True)
    return Total(tuple(names), False)


def find_sources(root: Path, path: str | None = None) -> tuple[tuple[Source, ...], str | None]:
    """Return what can be read here, or the reason why nothing can.

    Args:
        root: where ``sys`` is mounted.
        path: where commands are looked for; ``PATH`` of the environment if ``None``.
    """
    board = tuple(_hwmon_rails(root))
    if board:
        return (Source("hwmon", board),), None
    tegrastats = shutil.which("tegrastats", path=path)
    if tegrastats is not None:
        return (Source("tegrastats", (), (tegrastats, "--interval", "100")),), None
    found: list[Source] = []
    processor, problem = _rapl_rails(root)
    if processor:
        found.append(Source("rapl", processor))
    smi = shutil.which("nvidia-smi", path=path)
    if smi is not None:
        query = ("--query-gpu=index,power.draw", "--format=csv,noheader,nounits", "-lms", "100")
        found.append(Source("nvidia-smi", (), (smi, *query)))
    if found:
        return tuple(found), None
    return (), (
        "no power sensor can be read: no INA3221 or INA238 under /sys/class/hwmon, no tegrastats, "
        f"{problem}, no nvidia-smi"
    )


def _hwmon_rails(root: Path) -> Iterator[Rail]:
    for chip in sorted((root / HWMON).glob("hwmon*")):
        kind = read_text(chip / "name")
        if kind == "ina3221":
            yield from _ina3221_rails(chip)
        elif kind in _POWER_CHIPS and read_integer(chip / "power1_input") is not None:
            name = read_text(chip / "power1_label") or read_text(chip / "in1_label") or kind
            yield Rail(_board_name(name), WATT, (str(chip / "power1_input"),))


def _ina3221_rails(chip: Path) -> Iterator[Rail]:
    for channel in _CHANNELS:
        label = read_text(chip / f"in{channel}_label")
        files = (str(chip / f"in{channel}_input"), str(chip / f"curr{channel}_input"))
        # "NC" is a channel that is not connected.
        if label is None or label.upper() == "NC" or read_text(chip / f"in{channel}_enable") == "0":
            continue
        rail = Rail(_board_name(label), WATT, files)
        if rail.read() is not None:
            yield rail


def _board_name(label: str) -> str:
    return label.replace(" ", "_")


def _rapl_rails(root: Path) -> tuple[tuple[Rail, ...], str]:
    """Return the counters, or say why there are none."""
    zones = sorted((root / RAPL).glob("intel-rapl:*"))
    rails = []
    for zone in zones:
        name = read_text(zone / "name") or zone.name
        parent = zone.name.rpartition(":")[0]
        if parent.count(":"):  # a part of a package: "package-0:core"
            name = f"{read_text(root / RAPL / parent / 'name') or parent}:{name}"
        span = read_integer(zone / "max_energy_range_uj")
        wraps_at = None if span is None else span / 1e6
        rail = Rail(name, JOULE, (str(zone / "energy_uj"),), wraps_at)
        if rail.read() is not None:
            rails.append(rail)
    if rails:
        return tuple(rails), ""
    if zones:
        return (), "RAPL may be read by root only"
    return (), "no RAPL under /sys/class/powercap"
