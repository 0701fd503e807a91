"""Samples power in a process of its own: ``python -m edgekit.power.sampler REQUEST``.

Each line on standard output is a sample: source, time on the system's monotonic clock, and a value
for each rail. It goes on until its standard input ends, so that it cannot outlive its parent.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import IO, Any

from edgekit.power.nvidia_smi import read_power
from edgekit.power.rails import Rail, Source
from edgekit.power.tegrastats import read_rails

_READERS: Mapping[str, Callable[[str], dict[str, float]]] = {
    "tegrastats": read_rails,
    "nvidia-smi": read_power,
}
_lock = threading.Lock()


def to_request(sources: tuple[Source, ...], interval_s: float) -> str:
    """Write what :func:`main` takes."""
    plain = [
        {
            "name": source.name,
            "rails": [
                {"name": r.name, "unit": r.unit, "files": r.files, "wraps_at": r.wraps_at}
                for r in source.rails
            ],
            "command": source.command,
        }
        for source in sources
    ]
    return json.dumps({"interval_s": interval_s, "sources": plain})


def main(request: str) -> None:
    """Sample what the request names.

    Args:
        request: what :func:`to_request` wrote.
    """
    asked = json.loads(request)
    sources = [_source(data) for data in asked["sources"]]
    with ExitStack() as stack:
        for source in sources:
            if source.command:
                stack.callback(_stop, _follow(source))
        files = [source for source in sources if source.rails]
        due = time.monotonic()
        while not _input_ended(max(due - time.monotonic(), 0.0)):
            due = max(due + asked["interval_s"], time.monotonic())
            for source in files:
                _sample_files(source)


def _source(data: Mapping[str, Any]) -> Source:
    rails = tuple(
        Rail(rail["name"], rail["unit"], tuple(rail["files"]), rail["wraps_at"])
        for rail in data["rails"]
    )
    return Source(data["name"], rails, tuple(data["command"]))


def _sample_files(source: Source) -> None:
    # The middle of reading: a rail on a slow bus takes a millisecond.
    begin = time.monotonic()
    values = {rail.name: rail.read() for rail in source.rails}
    at = (begin + time.monotonic()) / 2
    _tell(source.name, at, {name: value for name, value in values.items() if value is not None})


def _follow(source: Source) -> subprocess.Popen[bytes]:
    """Start a command and a thread that turns its lines into samples."""
    child = subprocess.Popen(
        source.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert child.stdout is not None
    threading.Thread(target=_read_lines, args=(source.name, child.stdout), daemon=True).start()
    return child


def _read_lines(name: str, stream: IO[bytes]) -> None:
    for line in stream:
        at = time.monotonic()
        values = _READERS[name](line.decode("utf-8", "replace"))
        if values:
            _tell(name, at, values)


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()


def _input_ended(patience_s: float) -> bool:
    ready = select.select([sys.stdin], [], [], patience_s)[0]
    return bool(ready) and not sys.stdin.readline()


def _tell(name: str, at: float, values: Mapping[str, float]) -> None:
    line = json.dumps({"source": name, "t": at, "values": dict(values)})
    with _lock, suppress(BrokenPipeError):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
