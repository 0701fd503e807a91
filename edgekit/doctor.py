"""What this machine can do for integer networks, what is missing, and how to get it.

Nothing heavy is imported here: each runtime answers from a process of its own, and packages are
looked up in their metadata. So it works with any of them missing or broken.
"""

from __future__ import annotations

import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.capabilities import (
    Machine,
    Meaning,
    cpu_meaning,
    gpu_meaning,
    runtime_meaning,
    runtime_source,
)
from edgekit.environment import cpu_description
from edgekit.errors import DISTRIBUTION
from edgekit.jetson import Jetson, memory_bytes, read_jetson
from edgekit.limits import Facts, Limit, limits, settings_advice
from edgekit.power.machine import clocks_pinned, power_mode
from edgekit.registry import RUNNERS
from edgekit.requirements import Package, optional_packages
from edgekit.runners.probe import GPUS, Probe, probe

SCHEMA_VERSION = 1
WORKS, NO_DEVICE, MISSING, BROKEN = "works", "no device", "missing", "broken"
_HOST_EXTRA = "torch"
QUANTIZE = "to quantize here"
"""How the advice begins that concerns hosts, not devices."""
_BOARD = Path("/proc/device-tree/model")


@dataclass(frozen=True, slots=True)
class RuntimeStatus:
    """One runtime.

    Attributes:
        name: key in the registry.
        state: ``"works"``, ``"no device"``, ``"missing"`` or ``"broken"``.
        versions: package to version.
        devices: what it sees: execution providers or devices.
        problem: why it does not work.
        meaning: what it does with integers on this machine.
    """

    name: str
    state: str
    versions: Mapping[str, str]
    devices: tuple[str, ...]
    problem: str | None
    meaning: Meaning

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "name": self.name,
            "state": self.state,
            "versions": dict(self.versions),
            "devices": list(self.devices),
            "problem": self.problem,
            **self.meaning.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class GpuStatus:
    """One NVIDIA GPU."""

    name: str
    compute_capability: int
    memory_bytes: int
    cuda_version: str
    meaning: Meaning

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "name": self.name,
            "compute_capability": self.compute_capability,
            "memory_bytes": self.memory_bytes,
            "cuda_version": self.cuda_version,
            **self.meaning.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """The state of this machine. ``docs/bench.md`` documents the JSON form.

    Attributes:
        python: version of Python.
        platform: operating system and architecture.
        board: name of the device's board, where the system tells one.
        cpu: name, usable cores and instruction sets.
        cpu_meaning: what the CPU does with integers.
        gpus: NVIDIA GPUs.
        gpu_problem: why there is none.
        runtimes: the runtimes of edgekit's targets.
        packages: the optional packages.
        facts: what else decides: Jetson, disk, power mode, clocks.
        memory: ``total`` and ``available``, in bytes.
        can: what edgekit can do here: ``quantize``, and ``run`` for each runtime.
        advice: what to install or mend, the most important first.
    """

    python: str
    platform: str
    board: str | None
    cpu: Mapping[str, Any]
    cpu_meaning: Meaning
    gpus: tuple[GpuStatus, ...]
    gpu_problem: str | None
    runtimes: tuple[RuntimeStatus, ...]
    packages: tuple[Package, ...]
    advice: tuple[str, ...]
    facts: Facts
    memory: Mapping[str, int | None]

    @property
    def limits(self) -> tuple[Limit, ...]:
        """What will not work here, the most important first."""
        return tuple(limits(self.facts))

    @property
    def can(self) -> dict[str, Any]:
        """Whether edgekit can quantize here, and which runtimes can run artifacts."""
        return {
            "quantize": not _absent(self.packages, _HOST_EXTRA),
            "run": [r.name for r in self.runtimes if r.state == WORKS],
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "python": self.python,
            "platform": self.platform,
            "board": self.board,
            "cpu": {**self.cpu, **self.cpu_meaning.to_dict()},
            "gpus": [gpu.to_dict() for gpu in self.gpus],
            "gpu_problem": self.gpu_problem,
            "runtimes": [runtime.to_dict() for runtime in self.runtimes],
            "packages": [package.to_dict() for package in self.packages],
            "jetson": _jetson_dict(self.facts.jetson),
            "memory_bytes": dict(self.memory),
            "free_bytes": self.facts.free_bytes,
            "power_mode": None if self.facts.power is None else dict(self.facts.power),
            "clocks_pinned": dict(self.facts.pinned or {}),
            "can": self.can,
            "will_not_work": [limit.to_dict() for limit in self.limits],
            "advice": list(self.advice),
        }


def doctor() -> DoctorReport:
    """Examine this machine."""
    names = [*RUNNERS, GPUS]
    with ThreadPoolExecutor(len(names)) as pool:
        probes = dict(zip(names, pool.map(probe, names), strict=True))
    gpus, gpu_problem = _gpus(probes[GPUS])
    machine = Machine(platform.machine(), tuple(gpu.name for gpu in gpus), _board(_BOARD))
    runtimes = tuple(_runtime(name, probes[name], machine) for name in RUNNERS)
    packages = tuple(optional_packages())
    cpu = cpu_description()
    flags = cpu["flags"]
    assert isinstance(flags, list)
    memory = memory_bytes()
    facts = _facts(runtimes, gpus, gpu_problem, memory["available"])
    return DoctorReport(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.release()} {machine.architecture}",
        board=machine.board,
        cpu=cpu,
        cpu_meaning=cpu_meaning(machine.architecture, flags),
        gpus=gpus,
        gpu_problem=gpu_problem,
        runtimes=runtimes,
        packages=packages,
        advice=(*advise(runtimes, packages, machine), *settings_advice(facts)),
        facts=facts,
        memory=memory,
    )


def _facts(
    runtimes: Sequence[RuntimeStatus],
    gpus: Sequence[GpuStatus],
    gpu_problem: str | None,
    available: int | None,
) -> Facts:
    return Facts(
        jetson=read_jetson(),
        compute_capabilities=tuple(gpu.compute_capability for gpu in gpus),
        gpu_problem=gpu_problem,
        works={r.name: r.versions for r in runtimes if r.state == WORKS},
        available_bytes=available,
        free_bytes=_free(),
        power=power_mode(),
        pinned=clocks_pinned(),
    )


def _free() -> int | None:
    try:
        return shutil.disk_usage(tempfile.gettempdir()).free
    except OSError:
        return None


def _jetson_dict(jetson: Jetson | None) -> dict[str, Any] | None:
    return None if jetson is None else jetson.to_dict()


def _gpus(answer: Probe) -> tuple[tuple[GpuStatus, ...], str | None]:
    told = answer.data.get("gpus", ())
    gpus = tuple(GpuStatus(**gpu, meaning=gpu_meaning(gpu["compute_capability"])) for gpu in told)
    return gpus, answer.broken or answer.missing


def _runtime(name: str, answer: Probe, machine: Machine) -> RuntimeStatus:
    devices = answer.data.get("devices")
    devices = machine.gpus if devices is None else tuple(devices)
    state, problem = WORKS, None
    if answer.broken is not None:
        state, problem = BROKEN, answer.broken
    elif answer.missing is not None:
        state, problem = MISSING, answer.missing
    elif not devices:
        state, problem = NO_DEVICE, "this machine has no device that it could use"
    return RuntimeStatus(
        name,
        state,
        answer.data.get("versions", {}),
        devices if state == WORKS else (),
        problem,
        runtime_meaning(name, machine),
    )


def _board(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def advise(
    runtimes: Sequence[RuntimeStatus], packages: Sequence[Package], machine: Machine
) -> Iterator[str]:
    """Yield what to install or mend, the most important first.

    Args:
        runtimes: states of the runtimes.
        packages: the optional packages.
        machine: decides which runtimes make sense.
    """
    for package in packages:
        if package.fits is False:
            yield (
                f"{package.name} {package.installed} is outside of what edgekit was made for "
                f"({package.bounds}): {_install(package.extra)}"
            )
    for runtime in runtimes:
        if runtime.state == BROKEN:
            yield f"{runtime.name} is installed but fails ({runtime.problem}): install it again"
    absent = _absent(packages, _HOST_EXTRA)
    if absent:
        yield f"{QUANTIZE} ({', '.join(absent)} missing): {_install(_HOST_EXTRA)}"
    for runtime in runtimes:
        source = runtime_source(runtime.name, machine)
        if runtime.state == MISSING and source is not None:
            how = source.text if source.extra is None else _install(source.extra)
            yield f"to run {runtime.name} artifacts here: {how}"


def _absent(packages: Sequence[Package], extra: str) -> list[str]:
    return [p.name for p in packages if p.extra == extra and p.installed is None]


def _install(extra: str) -> str:
    return f"{Path(sys.executable).name} -m pip install '{DISTRIBUTION}[{extra}]'"
