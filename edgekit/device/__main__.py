"""The watching process of the device part: starts the job, and ends it with all its workers."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import site
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from edgekit.device.events import INTERRUPTED, Ended, Events
from edgekit.errors import ConfigError, EdgekitError, LoadError, VerificationError

COMMANDS = ("bench", "doctor", "build", "run", "verify")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_USAGE = (
    f"python -m edgekit.device [--tied] [--plain] {'|'.join(COMMANDS)} "
    "[REQUEST.json] [NAME=VALUE...]"
)
_GRACE_S = 5.0  # for the job to remove what it has made; a worker of TensorRT ends at once
_LONGEST_REQUEST = 1 << 24
_POLL_MS = 100
_CODES = (0, 1, 2, 3, INTERRUPTED)


def main(arguments: Sequence[str]) -> int:
    """Run one command and return the exit code."""
    events = Events(sys.stdout.buffer, plain="--plain" in arguments)
    try:
        _raise_on_signals()
        return _answer(arguments, events)
    except (Ended, BrokenPipeError):
        return INTERRUPTED


def _answer(arguments: Sequence[str], events: Events) -> int:
    try:
        command, tied, request = _parse(arguments)
        return _watch(command, request, events, tied=tied)
    except EdgekitError as error:
        events.error(error)
        return error.exit_code


def _parse(arguments: Sequence[str]) -> tuple[str, bool, dict[str, Any]]:
    options = {text for text in arguments if text.startswith("--")}
    names = [text for text in arguments if text not in options and "=" not in text]
    changes = [text for text in arguments if text not in options and "=" in text]
    if options - {"--tied", "--plain"} or not 1 <= len(names) <= 2 or names[0] not in COMMANDS:
        raise ConfigError(f"cannot read the arguments {list(arguments)}", f"usage: {_USAGE}")
    tied = "--tied" in options
    request: dict[str, Any] = {}
    if len(names) == 2:
        request = _read_file(Path(names[1]))
    elif tied or not (changes or names[0] == "doctor"):  # which has no options to be typed
        request = _read_stdin(tied=tied)
    return names[0], tied, {**request, **dict(map(_change, changes))}


def _change(text: str) -> tuple[str, Any]:
    """Read ``NAME=VALUE``: JSON, or what is no JSON as a text."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise LoadError(f"request '{path}' cannot be read: {error.strerror}") from error
    return _object(text, f"'{path}'")


def _read_stdin(*, tied: bool) -> dict[str, Any]:
    """Read the request; a tied standard input stays open behind its first document."""
    text = b""
    while len(text) < _LONGEST_REQUEST:
        line = sys.stdin.buffer.readline()
        text += line
        if not line:
            break
        with contextlib.suppress(ValueError):
            if tied and isinstance(json.loads(text), dict):
                break
    return _object(text, "standard input")


def _object(text: bytes, where: str) -> dict[str, Any]:
    try:
        request = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the request on {where} is not JSON: {error}") from error
    if not isinstance(request, dict):
        raise ConfigError(f"the request on {where} is {type(request).__name__}, not an object")
    return request


def _raise_on_signals() -> None:
    def end(_number: int, _frame: FrameType | None) -> None:
        for number in _SIGNALS:  # a second Ctrl-C must not cut the clean-up short
            signal.signal(number, signal.SIG_IGN)
        raise Ended

    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored under nohup
            signal.signal(number, end)


def _watch(command: str, request: dict[str, Any], events: Events, *, tied: bool) -> int:
    """Run the job and return its exit code.

    Raises:
        Ended: a signal arrived, or nobody reads the answer any more; the job is gone.
        VerificationError: the job's process crashed.
    """
    job = subprocess.Popen(
        [sys.executable, "-m", "edgekit.device.job", command, *(["--plain"] * events.plain)],
        stdin=subprocess.PIPE,  # open as long as this process lives: its end is the job's
        env=_environment(),
        start_new_session=True,
    )
    try:
        assert job.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it crashed: its exit code says so
            job.stdin.write(json.dumps(request).encode() + b"\n")
            job.stdin.flush()
        code = _wait(job, tied=tied)
    except BaseException:
        _end(job)
        raise
    if code not in _CODES:
        _end(job)  # its workers have nobody left to answer to
        raise VerificationError(
            f"'{command}': its process ended with {_ending(code)}",
            "out of memory? What it wrote to standard error says more",
        )
    return code


def _wait(job: subprocess.Popen[bytes], *, tied: bool) -> int:
    """Wait for the job's end, or for that of whoever reads its answer."""
    streams = select.poll()
    streams.register(1, 0)  # without events: only that its reader has gone is reported
    if tied:
        streams.register(0, select.POLLIN)
    while (code := job.poll()) is None:
        for descriptor, happened in streams.poll(_POLL_MS):
            if descriptor == 0 and happened & select.POLLIN and os.read(0, 4096):
                continue  # something behind the request, as a sign of life
            raise Ended
    return code


def _end(job: subprocess.Popen[bytes]) -> None:
    """End the job's session: first by asking, so that it removes its temporary folders."""
    assert job.stdin is not None
    with contextlib.suppress(OSError):
        job.stdin.close()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        job.wait(_GRACE_S)
    with contextlib.suppress(ProcessLookupError):  # also workers that outlived the job
        os.killpg(job.pid, signal.SIGKILL)
    job.wait()


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:  # a real-time signal has no name
        return f"signal {-code}"


def _environment() -> dict[str, str]:
    """Return the job's environment, in which its workers find this very package.

    They work in folders of their own, where relative entries of ``PYTHONPATH`` lead nowhere.
    """
    package = Path(__file__).resolve().parent.parent.parent
    entries = [str(Path(entry).resolve()) for entry in _entries()]
    installed = {*site.getsitepackages(), site.getusersitepackages()}
    if str(package) not in {*entries, *(str(Path(path).resolve()) for path in installed)}:
        entries.insert(0, str(package))
    # Python 3.11 and later: what lies in the current folder shadows no module.
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entries), "PYTHONSAFEPATH": "1"}


def _entries() -> list[str]:
    return [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
