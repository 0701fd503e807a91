"""Starts and ends the sampling of power, which runs in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from edgekit.power.energy import Samples
from edgekit.power.rails import Source, find_sources
from edgekit.power.sampler import to_request

INTERVAL_S = 0.02
IDLE_S = 1.0
_FIRST_SAMPLE_S = 10.0
_TAIL_S = 0.15  # so that a sample of a slow source lies behind the last inference
_END_S = 5.0


class PowerMonitor:
    """Samples what can be read here, from entering to leaving.

    Entering takes a second in which nothing else happens, for the power of the idle machine;
    nothing is started where there is nothing to read.

    Args:
        wanted: whether to sample at all.
        root: where ``sys`` is mounted.
        path: where commands are looked for; ``PATH`` of the environment if ``None``.
        idle_s: seconds for the idle machine.
    """

    def __init__(
        self,
        *,
        wanted: bool = True,
        root: Path = Path("/"),
        path: str | None = None,
        idle_s: float = IDLE_S,
    ) -> None:
        self.sources: tuple[Source, ...] = ()
        self.reason: str | None = "not asked for"
        self.idle_span: tuple[float, float] | None = None
        self._idle_s = idle_s
        if wanted:
            self.sources, self.reason = find_sources(root, path)
        self._child: subprocess.Popen[bytes] | None = None
        self._samples = Samples(self.sources, {})

    @property
    def samples(self) -> Samples:
        """What was sampled; complete after leaving."""
        return self._samples

    def __enter__(self) -> PowerMonitor:
        if not self.sources:
            return self
        self._folder = tempfile.TemporaryDirectory(prefix="edgekit-")
        self._file = Path(self._folder.name) / "samples"
        request = to_request(self.sources, INTERVAL_S)
        with self._file.open("wb") as stream:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "edgekit.power.sampler", request],
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=subprocess.DEVNULL,
                cwd=self._folder.name,
            )
        self._wait_for_first()
        begin = time.monotonic()
        time.sleep(self._idle_s)
        self.idle_span = (begin, time.monotonic())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._child is None:
            return
        if kind is None:
            time.sleep(_TAIL_S)
        assert self._child.stdin is not None
        self._child.stdin.close()
        try:
            self._child.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        with self._file.open(encoding="utf-8") as lines:
            self._samples = Samples.parse(self.sources, lines)
        self._folder.cleanup()
        if not self._samples.series:
            names = ", ".join(source.name for source in self.sources)
            self.reason = f"{names}: there, but tells no power"

    def _wait_for_first(self) -> None:
        """Wait until a sample is there; a source that never tells one is found out at the end."""
        assert self._child is not None
        end = time.monotonic() + _FIRST_SAMPLE_S
        while time.monotonic() < end and self._child.poll() is None:
            if self._file.stat().st_size:
                return
            time.sleep(INTERVAL_S)
