"""Files to the device and back: room before, hashes after."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from edgekit.errors import LoadError, require
from edgekit.manifest import FileEntry
from edgekit.remote.connection import Connection
from edgekit.remote.errors import DeviceError, DiskFullError
from edgekit.remote.ssh_config import EXTRA
from edgekit.remote.workspace import Workspace
from edgekit.types import Progress

_SPARE_BYTES = 32 << 20  # what a run writes itself: requests, logs, profiles
_HASHES = """
import hashlib, json, sys
wrong = []
for path, expected in json.load(sys.stdin).items():
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for chunk in iter(lambda: stream.read(1 << 20), b""):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        wrong.append(path)
print(json.dumps(wrong))
"""
_HASH_S = 600.0


@dataclass(frozen=True, slots=True)
class Upload:
    """A local file and its path inside of the device's folder."""

    source: Path
    target: str

    @property
    def size_bytes(self) -> int:
        """Size of the file.

        Raises:
            LoadError: it cannot be read.
        """
        try:
            return self.source.stat().st_size
        except OSError as error:
            raise LoadError(f"'{self.source}' cannot be read: {error.strerror}") from error


def free_bytes(connection: Connection, folder: str) -> int | None:
    """Return the free space of a folder on the device, ``None`` where ``df`` does not tell."""
    answer = connection.run(["df", "-Pk", "--", folder])
    return parse_df(answer.stdout) if answer.status == 0 else None


def parse_df(text: str) -> int | None:
    """Read ``df -Pk``: a heading, then one line with the free kilobytes in its fourth column.

    The first column may contain spaces, so columns are counted from the percent sign.
    """
    for line in text.splitlines()[1:]:
        words = line.split()
        at = next((i for i, word in enumerate(words) if word.endswith("%")), None)
        if at is not None and at >= 1 and words[at - 1].lstrip("-").isdigit():
            return max(int(words[at - 1]), 0) * 1024
    return None


def check_room(connection: Connection, folder: str, needed: int) -> int | None:
    """Return the free space of a folder.

    Args:
        connection: the open connection.
        folder: folder on the device.
        needed: bytes of files to be written; what a run writes itself is added.

    Raises:
        DiskFullError: there is less free than needed.
    """
    free = free_bytes(connection, folder)
    if free is not None and free < needed + _SPARE_BYTES:
        raise disk_full(connection, folder, needed + _SPARE_BYTES, free)
    return free


def disk_full(connection: Connection, folder: str, needed: int, free: int) -> DiskFullError:
    """Return the error for a disk that is too small."""
    return DiskFullError(
        f"the disk of {connection.endpoint.label} is full: '{folder}' needs {needed} bytes and "
        f"has {free} free",
        "free space there, or set workdir in devices.toml to a folder on another disk",
    )


def send_files(
    connection: Connection, workspace: Workspace, uploads: Iterable[Upload], progress: Progress
) -> int:
    """Copy files into the device's folder and return their bytes.

    Args:
        connection: the open connection.
        workspace: the folder.
        uploads: what to copy.
        progress: called with the finished fraction of the copy.

    Raises:
        DiskFullError: the device has no room for a file.
        ConnectionLostError: the connection broke.
        DeviceError: the device refuses a file.
        LoadError: a local file cannot be read.
    """
    files = list(uploads)
    total, done = sum(file.size_bytes for file in files), 0
    made: set[str] = set()
    for number, file in enumerate(files, 1):
        stage = f"copy {number}/{len(files)}: {PurePosixPath(file.target).name}"
        target = workspace.inside(file.target)
        try:
            _make_parents(connection.sftp(), workspace, file.target, made)
            connection.sftp().put(str(file.source), target, _shown(progress, stage, done, total))
        except (OSError, EOFError, _ssh_error()) as error:
            raise _failed(connection, workspace, file, total - done, error) from error
        done += file.size_bytes
    return total


def _ssh_error() -> type[Exception]:
    error: type[Exception] = require("paramiko", extra=EXTRA).SSHException
    return error


def _shown(progress: Progress, stage: str, before: int, total: int) -> Any:
    def show(sent: int, _size: int) -> None:
        progress(stage, (before + sent) / max(total, 1))

    return show


def _make_parents(sftp: Any, workspace: Workspace, target: str, made: set[str]) -> None:
    for parent in reversed(PurePosixPath(target).parents[:-1]):
        if str(parent) not in made:
            sftp.mkdir(workspace.inside(str(parent)), 0o700)
            made.add(str(parent))


def _failed(
    connection: Connection, workspace: Workspace, file: Upload, left: int, error: BaseException
) -> DeviceError | LoadError:
    """Say why a copy failed; SFTP itself knows only 'Failure'."""
    if not connection.alive:
        return connection.lost()
    if isinstance(error, OSError) and error.filename == str(file.source):
        return LoadError(f"'{file.source}' cannot be read: {error.strerror}")
    free = free_bytes(connection, workspace.path)
    if free is not None and free < left:
        return disk_full(connection, workspace.path, left, free)
    told = "" if free is None else f"; {free} bytes are free there, {left} are needed"
    return DeviceError(
        f"'{file.target}' cannot be written on {connection.endpoint.label}: {error}{told}",
        "a quota or a limit on the size of files (ulimit -f) may stop it",
    )


def check_hashes(
    connection: Connection, workspace: Workspace, python: str, uploads: Iterable[Upload]
) -> None:
    """Compare what arrived with what was sent.

    Raises:
        DeviceError: a file differs.
    """
    expected: Mapping[str, str] = {
        file.target: FileEntry.of(file.source.parent, file.source.name).sha256 for file in uploads
    }
    answer = connection.run(
        workspace.command([python, "-c", _HASHES]), json.dumps(expected).encode(), _HASH_S
    )
    lines = answer.stdout.splitlines()
    if answer.status != 0 or not lines:
        told = answer.stderr.strip().splitlines()
        raise DeviceError(
            f"{connection.endpoint.label} cannot read what was copied there: "
            + (told[-1] if told else f"exit code {answer.status}")
        )
    wrong = json.loads(lines[-1])
    if wrong:
        raise DeviceError(
            f"{', '.join(wrong)} arrived damaged on {connection.endpoint.label}",
            "run the command again; if it happens again, the device's disk is failing",
        )


def fetch_file(connection: Connection, workspace: Workspace, path: str, target: Path) -> bool:
    """Copy a file back, if it exists there, so that ``target`` is whole or stays as it was.

    Raises:
        ConnectionLostError: the connection broke.
    """
    sftp, source = connection.sftp(), workspace.inside(path)
    partial = target.with_name(f".{target.name}.part")
    try:
        found = sftp.lstat(source)
        if not stat.S_ISREG(found.st_mode or 0):  # a link would lead anywhere
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        sftp.get(source, str(partial))
        partial.replace(target)
    except FileNotFoundError:
        return False
    except (OSError, EOFError, _ssh_error()):
        partial.unlink(missing_ok=True)
        if not connection.alive:
            raise connection.lost() from None
        return False
    return True
