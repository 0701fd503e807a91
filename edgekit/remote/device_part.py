"""Runs the torch-free part on the device and reads its events."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgekit import errors
from edgekit.device.package import write_runner
from edgekit.errors import EdgekitError
from edgekit.remote.connection import Connection
from edgekit.remote.errors import DeviceError, RunnerKilledError
from edgekit.remote.preflight import Interpreter
from edgekit.remote.process import RemoteProcess
from edgekit.remote.transfer import Upload, check_hashes, check_room, send_files
from edgekit.remote.workspace import Workspace
from edgekit.types import Progress

RUNNER, SCRATCH = "runner", "scratch"
_SILENCE_S = 2400.0  # beyond the 1800 s that a build of an engine may take
_UNPACK_S = 60.0
_KINDS: Mapping[str, type[EdgekitError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, EdgekitError)
}

Document = dict[str, Any]


class DevicePart:
    """The torch-free part in a folder on the device.

    Args:
        connection: the open connection.
        workspace: the folder.
        interpreter: Python on the device.
    """

    def __init__(
        self, connection: Connection, workspace: Workspace, interpreter: Interpreter
    ) -> None:
        self._connection = connection
        self._workspace = workspace
        self._interpreter = interpreter

    def install(self, progress: Progress) -> None:
        """Copy the runner to the device.

        Raises:
            DeviceError: it cannot be written there.
        """
        archive = f"{RUNNER}.zip"
        with TemporaryDirectory(prefix="edgekit-") as name:
            packed = Path(name) / archive
            _pack(packed)
            self.send([Upload(packed, archive)], progress)
        # One file rather than many: each takes several trips of the network.
        unpack = [self._interpreter.program, "-m", "zipfile", "-e", archive, RUNNER]
        answer = self._connection.run(self._workspace.command(unpack), timeout_s=_UNPACK_S)
        if answer.status != 0:
            told = answer.stderr.strip().splitlines() or [f"exit code {answer.status}"]
            where = self._connection.endpoint.label
            raise DeviceError(f"the runner cannot be unpacked on {where}: {told[-1]}")
        self._connection.sftp().mkdir(self._workspace.inside(SCRATCH), 0o700)

    def send(self, uploads: list[Upload], progress: Progress) -> int:
        """Copy files to the device, checked by their hashes, and return their bytes.

        Raises:
            DiskFullError: there is no room.
            DeviceError: they cannot be written, or arrive damaged.
        """
        total = sum(upload.size_bytes for upload in uploads)
        check_room(self._connection, self._workspace.path, total)
        send_files(self._connection, self._workspace, uploads, progress)
        check_hashes(self._connection, self._workspace, self._interpreter.program, uploads)
        return total

    def ask(
        self,
        command: str,
        request: Mapping[str, Any],
        progress: Progress,
        partial: Callable[[Document], None] | None = None,
    ) -> Document:
        """Run a command of the device part and return its document.

        Args:
            command: ``bench``, ``doctor``, ``build`` or ``run``.
            request: its options; paths are relative to the folder.
            progress: called as the device reports.
            partial: called with a document of what is finished so far.

        Raises:
            EdgekitError: what the device reports.
            RunnerKilledError: its process ended without an answer.
            ConnectionLostError: the connection broke.
        """
        words = self._words(command)
        with RemoteProcess(self._connection, self._workspace.command(words), _SILENCE_S) as process:
            process.send(json.dumps(request).encode() + b"\n")
            for line in process.lines():
                event = _event(line)
                kind = event.get("event")
                if kind == "progress":
                    progress(str(event["text"]), _fraction(event))
                elif kind == "partial" and partial is not None:
                    partial(event["document"])
                elif kind == "result":
                    document: Document = event["document"]
                    return document
                elif kind == "error":
                    raise self._rebuilt(event["error"])
            raise self._ended(command, process)

    def _words(self, command: str) -> list[str]:
        variables = {
            **self._connection.device.env,
            "PYTHONPATH": self._workspace.inside(RUNNER),
            # What a worker leaves behind when it is killed is then removed with the folder.
            "TMPDIR": self._workspace.inside(SCRATCH),
        }
        assignments = [f"{name}={value}" for name, value in variables.items()]
        python = self._interpreter.program
        return ["env", *assignments, python, "-m", "edgekit.device", "--tied", command]

    def _rebuilt(self, told: Mapping[str, Any]) -> EdgekitError:
        kind = _KINDS.get(str(told["kind"]), DeviceError)
        hint = told.get("hint")
        return kind(
            f"on {self._connection.endpoint.label}: {told['message']}",
            f"on the device: {hint}" if hint else "",
        )

    def _ended(self, command: str, process: RemoteProcess) -> RunnerKilledError:
        status = process.status()
        how = "was killed by a signal" if status is None else f"ended with exit code {status}"
        told = f": {process.told}" if process.told else ""
        return RunnerKilledError(
            f"the runner on {self._connection.endpoint.label} {how} during '{command}'{told}",
            "a device that runs out of memory kills processes ('dmesg' there says so); close "
            "other programs, or add swap",
        )


def _pack(archive: Path) -> None:
    """Write the runner as one archive."""
    with TemporaryDirectory(prefix="edgekit-") as name, zipfile.ZipFile(archive, "w") as packed:
        folder = Path(name)
        for file in write_runner(folder):
            packed.write(file, file.relative_to(folder).as_posix(), zipfile.ZIP_DEFLATED)


def _event(line: str) -> dict[str, Any]:
    """Read an event; a line of somebody else, such as a login script, is an empty one."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def _fraction(event: Mapping[str, Any]) -> float:
    total = float(event.get("total") or 0.0)
    return min(max(float(event.get("done") or 0.0) / total, 0.0), 1.0) if total > 0 else 0.0
