"""A command on the device whose lines are read while it runs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from edgekit.remote.connection import Connection
from edgekit.remote.errors import DeviceError

_POLL_S = 0.2
_CHUNK_BYTES = 1 << 15
_TOLD_LINES = 5


class RemoteProcess:
    """A running command; leaving the context closes its standard input and forgets it.

    Args:
        connection: where it runs.
        command: program and arguments.
        silence_s: longest time without a line.
    """

    def __init__(self, connection: Connection, command: Sequence[str], silence_s: float) -> None:
        self._connection = connection
        self._command = command
        self._silence_s = silence_s
        self._channel: Any = None
        self._unread = b""
        self._told: deque[str] = deque(maxlen=_TOLD_LINES)
        self._stderr = b""

    def __enter__(self) -> RemoteProcess:
        self._channel = self._connection.start(self._command)
        self._channel.settimeout(_POLL_S)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._channel.close()

    @property
    def told(self) -> str:
        """The last lines of its standard error."""
        return " | ".join(self._told)

    def send(self, data: bytes) -> None:
        """Write to its standard input.

        Raises:
            ConnectionLostError: the connection broke.
        """
        try:
            self._channel.sendall(data)
        except OSError as error:
            if not self._connection.alive:
                raise self._connection.lost() from error
            # It has ended: why, its answer says.

    def lines(self) -> Iterator[str]:
        """Yield its lines until it ends.

        Raises:
            ConnectionLostError: the connection broke.
            DeviceError: it said nothing for too long.
        """
        heard = time.monotonic()
        while True:
            line, separator, rest = self._unread.partition(b"\n")
            if separator:
                self._unread = rest
                heard = time.monotonic()
                yield line.decode("utf-8", "replace")
                continue
            chunk = self._receive()
            if chunk == b"":
                return
            self._unread += chunk or b""
            if time.monotonic() - heard > self._silence_s:
                raise DeviceError(
                    f"{self._connection.endpoint.label}: nothing was heard of the runner for "
                    f"{self._silence_s:.0f} s",
                    "it hangs: see what else runs on the device",
                )

    def _receive(self) -> bytes | None:
        """Return what arrived, ``b""`` at its end, ``None`` if nothing came for a moment."""
        self._drain_stderr()
        try:
            chunk: bytes = self._channel.recv(_CHUNK_BYTES)
        except TimeoutError:
            if not self._connection.alive:
                raise self._connection.lost() from None
            return None
        if chunk == b"":
            self._drain_stderr()
            if self.status() is None and not self._connection.answers():
                raise self._connection.lost()
        return chunk

    def _drain_stderr(self) -> None:
        # Unread text would fill the channel's window, and the process would stand still.
        while self._channel.recv_stderr_ready():
            self._stderr += self._channel.recv_stderr(_CHUNK_BYTES)
        *whole, self._stderr = self._stderr.split(b"\n")
        for line in whole:
            text = line.decode("utf-8", "replace").strip()
            if text:
                self._told.append(text)

    def status(self) -> int | None:
        """Return the exit code; ``None`` where a signal or the connection ended it."""
        return self._connection.exit_status(self._channel)
