"""A device, ready to work: connected, examined, with the torch-free part in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from edgekit.remote.address import Device
from edgekit.remote.connection import Connection
from edgekit.remote.device_part import DevicePart
from edgekit.remote.preflight import Interpreter, at_home, find_interpreter
from edgekit.remote.transfer import free_bytes
from edgekit.remote.workspace import Workspace
from edgekit.types import Progress

_COPIED = 0.05  # of the whole job, so that the bar moves


@dataclass(frozen=True, slots=True)
class Session:
    """What the work on a device needs."""

    device: Device
    connection: Connection
    workspace: Workspace
    interpreter: Interpreter
    part: DevicePart
    workdir: str

    def describe(self) -> dict[str, Any]:
        """Return the key ``device`` of a document: plain JSON values."""
        where = self.connection.endpoint
        return {
            "name": self.device.name,
            "host": where.host,
            "port": where.port,
            "user": where.user,
            "host_key": self.connection.host_key,
            "python": self.interpreter.version,
            "numpy": self.interpreter.numpy,
            "workdir": self.workdir,
            "free_bytes": free_bytes(self.connection, self.workspace.path),
        }


@contextmanager
def open_session(device: Device, progress: Progress) -> Iterator[Session]:
    """Connect, examine the device and install the torch-free part; clear up at the end.

    Args:
        device: the device.
        progress: called as it advances.

    Raises:
        DeviceError: the device cannot be used.
    """
    progress(f"connect to {device.name}", 0.0)
    with Connection(device) as connection:
        progress("examine Python", 0.01)
        interpreter = find_interpreter(connection)
        workdir = at_home(connection, device.workdir)
        with Workspace(connection, workdir) as workspace:
            part = DevicePart(connection, workspace, interpreter)
            part.install(between(progress, 0.01, _COPIED))
            yield Session(device, connection, workspace, interpreter, part, workdir)


def between(progress: Progress, start: float, end: float) -> Progress:
    """Return a progress whose 0 to 1 is a part of another one's."""

    def show(stage: str, fraction: float) -> None:
        progress(stage, start + (end - start) * fraction)

    return show
