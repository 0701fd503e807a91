"""Times an artifact turn by turn, so that two processes can take turns on one machine.

A turn is about a hundredth of a second: what disturbs the machine for longer disturbs the turns of
both. The child side is :mod:`edgekit.runners.turns_worker`.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from edgekit.errors import EdgekitError
from edgekit.runners.child import child_failure, describe_exit, rebuild_error
from edgekit.runners.timing import Block, TimingRequest

_GRACE_S = 600.0  # for loading, and for networks of which a single inference takes minutes
_CHUNK_BYTES = 1 << 16


class TurnsProcess:
    """A process with one opened artifact. A context manager: it ends with the block.

    Start both processes before :meth:`ready` is called on either, so that they load side by side.

    Args:
        request: what to time; ``seconds`` has no meaning here.
    """

    module: ClassVar[str] = "edgekit.runners.turns_worker"

    def __init__(self, request: TimingRequest) -> None:
        self.request = replace(request, model=request.model.resolve())
        self._unread = b""

    def __enter__(self) -> TurnsProcess:
        self._folder = tempfile.TemporaryDirectory(prefix="edgekit-")
        folder = Path(self._folder.name)
        self._log, job = folder / "log.txt", folder / "request.json"
        # The monotonic clock is the system's: the child reads on it how long its start took.
        asked = {**self.request.to_dict(), "started_s": time.monotonic()}
        job.write_text(json.dumps(asked), encoding="utf-8")
        with self._log.open("wb") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-m", self.module, str(job)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                cwd=folder,
                env={**os.environ, "PYTHONFAULTHANDLER": "1"},
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._child.stdin is not None and self._child.stdout is not None
        # It holds nothing that is worth an orderly end, and a runtime may hang in its own.
        self._child.kill()
        self._child.wait()
        self._child.stdin.close()
        self._child.stdout.close()
        self._folder.cleanup()

    def ready(self) -> None:
        """Wait until the artifact is open and warmed up.

        Raises:
            EdgekitError: it cannot be run here, or its process crashed.
        """
        self._answer(self.request.warmup_s + _GRACE_S)

    def turn(self, seconds: float, percentile: float) -> float:
        """Run for a while and return a percentile of the latencies of this turn, in ms.

        Raises:
            EdgekitError: the process crashed.
        """
        return float(self._ask({"seconds": seconds, "percentile": percentile}, seconds)["ms"])

    def block(self) -> Block:
        """Return the figures of all turns together.

        Raises:
            EdgekitError: the process crashed.
        """
        return Block(**self._ask({"seconds": None}, 0.0)["block"])

    def _ask(self, command: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(command).encode() + b"\n")
        except BrokenPipeError:
            raise self._crashed() from None
        return self._answer(seconds + _GRACE_S)

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        line = self._line(time.monotonic() + timeout_s)
        if line is None:
            raise self._failure(f"no answer within {timeout_s:g} s")
        if not line:
            raise self._crashed()
        answer: dict[str, Any] = json.loads(line)
        if answer["error"] is not None:
            raise rebuild_error(self.request.target, answer["error"])
        return answer

    def _line(self, deadline: float) -> bytes | None:
        """Return the child's next line, ``b""`` when it has ended, ``None`` at the deadline."""
        assert self._child.stdout is not None
        descriptor = self._child.stdout.fileno()
        while b"\n" not in self._unread:
            patience = deadline - time.monotonic()
            if patience <= 0 or not select.select([descriptor], [], [], patience)[0]:
                return None
            read = os.read(descriptor, _CHUNK_BYTES)
            if not read:
                return b""
            self._unread += read
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _crashed(self) -> EdgekitError:
        return self._failure(describe_exit(self._child.wait()))

    def _failure(self, what: str) -> EdgekitError:
        return child_failure(self.request.target, self.request.model, what, self._log)
