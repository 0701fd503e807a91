"""Child processes: every step of the benchmark runs in one, measured.

The parent stays small on purpose: Linux starts a child's peak memory at its parent's, so this
module and those that drive it import nothing large.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks._cases import ROOT

_POLL_S = 0.05
_NEW_PEAK = 1.02  # a rise that is worth a precise reading
_LOG_LINES = 4
_TIMEOUT_S = 3 * 3600.0  # `--effort best` on a busy machine
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class StepError(Exception):
    """A child failed; the message ends with its last words."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a command took.

    ``code``: exit code. ``process_bytes``: largest resident size of any single process, as the
    kernel counts it. ``tree_bytes``: memory of all its processes together at their largest,
    sampled; what several of them share counts once.
    """

    code: int
    seconds: float
    process_bytes: int
    tree_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def run_measured(
    command: Sequence[str], *, cores: int | None = None, allowed: Sequence[int] = (0,)
) -> Usage:
    """Run a command from the checkout's root and wait for it.

    Args:
        command: program and arguments.
        cores: pin it to that many cores; no pinning if ``None``.
        allowed: exit codes that are no failure.

    Raises:
        StepError: it cannot start, fails, or takes longer than 15 minutes.
    """
    with tempfile.TemporaryFile() as log:
        started = time.perf_counter()
        process = _start(command, log, cores)
        memory = _TreeMemory(process.pid)
        try:
            while True:
                pid, status, used = os.wait4(process.pid, os.WNOHANG)
                seconds = time.perf_counter() - started
                if pid:
                    break
                if seconds > _TIMEOUT_S:
                    raise StepError(f"{_name(command)} did not end within {_TIMEOUT_S:g} s")
                memory.sample()
                time.sleep(_POLL_S)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
        if process.returncode not in allowed:
            what = f"{_name(command)} ended with code {process.returncode}"
            raise StepError(f"{what}: {_last_lines(log)}")
    return Usage(process.returncode, round(seconds, 3), used.ru_maxrss * 1024, memory.peak_bytes)


def run_step(module: str, request: dict[str, Any]) -> dict[str, Any]:
    """Run a module of this package in a child; it answers in JSON (see :func:`answer`).

    Raises:
        StepError: the child failed.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-benchmark-") as name:
        asked, answered = Path(name) / "request.json", Path(name) / "answer.json"
        asked.write_text(json.dumps(request), encoding="utf-8")
        run_measured([sys.executable, "-m", f"benchmarks.{module}", str(asked), str(answered)])
        result: dict[str, Any] = json.loads(answered.read_text(encoding="utf-8"))
        return result


def answer(step: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Child side of :func:`run_step`."""
    asked, answered = (Path(argument) for argument in sys.argv[1:])
    result = step(json.loads(asked.read_text(encoding="utf-8")))
    answered.write_text(json.dumps(result), encoding="utf-8")


def best_seconds(command: Sequence[str], times: int) -> float:
    """Return the shortest wall time of several runs.

    Raises:
        StepError: the command fails.
    """
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        with tempfile.TemporaryFile() as log:
            code = _start(command, log, None).wait()
            if code != 0:
                raise StepError(f"{_name(command)} ended with code {code}: {_last_lines(log)}")
        taken.append(time.perf_counter() - started)
    return min(taken)


def _start(command: Sequence[str], log: Any, cores: int | None) -> subprocess.Popen[bytes]:
    before = os.sched_getaffinity(0)
    try:
        if cores is not None and cores < len(before):
            os.sched_setaffinity(0, sorted(before)[:cores])  # inherited by the child
        return subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    except OSError as error:
        raise StepError(f"{_name(command)} cannot start: {error}") from error
    finally:
        os.sched_setaffinity(0, before)


class _TreeMemory:
    """Peak memory of a process and its descendants.

    The proportional size (shared pages split among their users) is what adds up, but reading it
    makes the kernel walk every page. So it is read only where the plain sum reaches a new peak.
    """

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._pid = pid
        self._peak_sum = 0

    def sample(self) -> None:
        processes = _descendants(self._pid)
        resident = sum(_resident_bytes(pid) for pid in processes)
        if resident > _NEW_PEAK * self._peak_sum:
            self._peak_sum = resident
            proportional = sum(_proportional_bytes(pid) for pid in processes)
            self.peak_bytes = max(self.peak_bytes, proportional)


def _descendants(pid: int) -> list[int]:
    """Return the process and all below it that still live."""
    found = [pid]
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += _descendants(int(child))
    except OSError:  # it ended meanwhile
        pass
    return found


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0


def _proportional_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _name(command: Sequence[str]) -> str:
    return " ".join([Path(command[0]).name, *command[1:3]])


def _last_lines(log: Any) -> str:
    log.seek(0)
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines()]
    return " | ".join([line for line in lines if line][-_LOG_LINES:]) or "it said nothing"
