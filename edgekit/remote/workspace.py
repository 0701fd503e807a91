"""A fresh folder on the device that is always removed, whatever ends the work.

A guard process on the device makes the folder and lives as long as its standard input: when that
ends, it kills what still runs inside of the folder and removes it. So nothing has to be done from
here: a lost connection, or a local process that was killed, close the input as well. Heartbeats
go through the guard and back. Without them, each side takes the other one for dead: the guard
clears up, and this side ends the connection.
"""

from __future__ import annotations

import re
import threading
import time
from contextlib import suppress
from pathlib import PurePosixPath
from types import TracebackType
from typing import Any

from edgekit.errors import EdgekitError
from edgekit.remote.connection import Connection
from edgekit.remote.errors import DeviceError, DiskFullError

_MARK = "edgekit-folder:"
_BEAT = b"."
_BEAT_EVERY_S = 10.0
_PATIENCE_S = 45.0  # of this side
_GUARD_PATIENCE_S = 90  # of the device
_START_S, _CLEAR_S = 30.0, 20.0
_NAME = re.compile(r"edgekit-[A-Za-z0-9]+")
# $1: folder to work in. $2: seconds without a heartbeat. No text of the user's is part of it.
_GUARD = f"""
folder=$(mktemp -d "$1/edgekit-XXXXXXXX") && cd "$folder" && folder=$(pwd -P) || exit 9
cd /
trap '' HUP INT TERM PIPE
printf '{_MARK}%s\\n' "$folder"
while :; do
  beat=$(timeout "$2" dd bs=1 count=1 2>/dev/null)
  [ -n "$beat" ] || break
  printf '%s\\n' "$beat" || break
done
for attempt in 1 2 3; do
  for link in /proc/[0-9]*/cwd; do
    case $(readlink "$link" 2>/dev/null) in
      "$folder"|"$folder"/*) link=${{link#/proc/}}; kill -9 "${{link%/cwd}}" 2>/dev/null ;;
    esac
  done
  rm -rf -- "$folder" && break
  sleep 1
done
"""


class Workspace:
    """A temporary folder on a device; a context manager.

    Attributes:
        path: absolute path of the folder.

    Args:
        connection: the open connection.
        workdir: existing folder on the device.

    Raises:
        DeviceError: the folder cannot be made.
        DiskFullError: because there is no room.
    """

    def __init__(self, connection: Connection, workdir: str) -> None:
        self._connection = connection
        self._workdir = workdir
        self._channel: Any = None
        self._heard = 0.0
        self._over = threading.Event()
        self.path = ""

    def __enter__(self) -> Workspace:
        words = ["sh", "-c", _GUARD, "sh", self._workdir, str(_GUARD_PATIENCE_S)]
        self._channel = self._connection.start(words)
        try:
            self._channel.settimeout(_START_S)
            self.path = self._folder()
            self._channel.settimeout(1.0)
        except BaseException:
            self._channel.close()
            raise
        self._heard = time.monotonic()
        threading.Thread(target=self._listen, daemon=True, name="edgekit-heartbeat").start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._connection.alive and self._cleared():
            return
        self._connection.close()
        self._clear_again()

    def command(self, words: list[str]) -> list[str]:
        """Return a command that runs some words inside of the folder."""
        return ["sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", self.path, *words]

    def inside(self, path: str) -> str:
        """Return the absolute path of something in the folder."""
        return str(PurePosixPath(self.path) / path)

    def _folder(self) -> str:
        """Return the folder's path, the guard's first line; a login script may say more before."""
        seen = b""
        try:
            while True:
                chunk: bytes = self._channel.recv(1024)
                seen += chunk
                for line in seen.decode("utf-8", "replace").splitlines(keepends=True):
                    if line.startswith(_MARK) and line.endswith("\n"):
                        return line.removeprefix(_MARK).rstrip("\n")
                if not chunk:
                    raise self._refused()
        except TimeoutError:
            raise self._connection.lost() from None

    def _refused(self) -> DeviceError:
        if not self._connection.alive:
            return self._connection.lost()
        told = self._channel.recv_stderr(4096).decode("utf-8", "replace").strip()
        what = f"no folder can be made in '{self._workdir}' on {self._connection.endpoint.label}"
        if "No space left" in told or "quota" in told.lower():
            return DiskFullError(f"{what}: {told}", "free space there, or set another workdir")
        return DeviceError(f"{what}: {told}", "set workdir in devices.toml to a folder of yours")

    def _listen(self) -> None:
        """Send heartbeats and wait for their return; end the connection where none comes."""
        beaten = time.monotonic()
        while not self._over.is_set():
            now = time.monotonic()
            if now - self._heard > _PATIENCE_S:
                self._connection.close()
                return
            try:
                if now - beaten >= _BEAT_EVERY_S:
                    beaten = now
                    self._channel.sendall(_BEAT)
                if self._channel.recv(256) == b"":
                    return
                self._heard = time.monotonic()
            except TimeoutError:
                continue
            except OSError:
                return

    def _cleared(self) -> bool:
        """Ask the guard to clear up, and say whether it did."""
        try:
            self._channel.shutdown_write()
            deadline = time.monotonic() + _CLEAR_S
            while not self._channel.exit_status_ready() and time.monotonic() < deadline:
                if not self._connection.alive:
                    return False
                time.sleep(0.05)
            return bool(self._channel.exit_status_ready() and self._channel.recv_exit_status() == 0)
        except (OSError, EOFError):
            return False

    def _clear_again(self) -> None:
        """Remove the folder through a new connection, should the guard have died, too."""
        if not _NAME.fullmatch(PurePosixPath(self.path).name):
            return
        # Whatever fails now has failed before: that error is the one to show.
        with (
            suppress(EdgekitError, OSError),
            Connection(self._connection.device) as again,
        ):
            again.run(["rm", "-rf", "--", self.path])
