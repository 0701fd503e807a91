"""The folder on the device: always removed, watched from both sides, never overfilled."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekit.remote import workspace as guarded
from edgekit.remote.connection import Connection
from edgekit.remote.errors import ConnectionLostError, DeviceError, DiskFullError
from edgekit.remote.transfer import (
    Upload,
    check_hashes,
    check_room,
    fetch_file,
    parse_df,
    send_files,
)
from edgekit.remote.workspace import Workspace
from edgekit.types import no_progress


def test_folder_is_removed_with_what_runs_in_it(server: Any) -> None:
    with Connection(server.device()) as connection:
        with Workspace(connection, str(server.workdir)) as workspace:
            assert [str(path) for path in server.left] == [workspace.path]
            assert Path(workspace.path).stat().st_mode & 0o777 == 0o700
            # Deaf, and without a stream of ours: nothing but the guard ends it.
            stray = "trap '' HUP TERM; sleep 60 <&- >&- 2>&- & echo $!"
            pid = int(connection.run(workspace.command(["sh", "-c", stray])).stdout)
            assert Path(f"/proc/{pid}").exists()
        assert server.left == []
        assert connection.alive
        assert server.soon(lambda: not Path(f"/proc/{pid}").exists())


def test_folder_is_removed_though_its_guard_was_killed(server: Any) -> None:
    with Connection(server.device()) as connection:
        with Workspace(connection, str(server.workdir)):
            (guard,) = server.guards()
            os.kill(guard, signal.SIGKILL)
        assert server.left == []


def test_folder_is_removed_after_an_error(server: Any) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        Connection(server.device()) as connection,
        Workspace(connection, str(server.workdir)),
    ):
        raise ZeroDivisionError
    assert server.left == []


def test_dead_device_ends_the_connection(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded, "_BEAT_EVERY_S", 0.1)
    monkeypatch.setattr(guarded, "_PATIENCE_S", 1.5)
    with (
        Connection(server.device()) as connection,
        Workspace(connection, str(server.workdir)) as workspace,
    ):
        stopped = server.sessions()
        for pid in stopped:  # silent but connected, as behind a pulled cable
            os.kill(pid, signal.SIGSTOP)
        with pytest.raises(ConnectionLostError, match="was lost"):
            connection.run(workspace.command(["sleep", "1"]), timeout_s=30.0)
        _wake(stopped)  # the clean-up through a new connection is no part of what is tested


def _wake(stopped: list[int]) -> None:
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)


def test_device_clears_up_when_this_side_is_silent(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarded, "_BEAT_EVERY_S", 1000.0)
    monkeypatch.setattr(guarded, "_GUARD_PATIENCE_S", 1)
    with Connection(server.device()) as connection, Workspace(connection, str(server.workdir)):
        assert len(server.left) == 1
        assert server.soon(lambda: server.left == [])


# Files


@pytest.fixture
def workspace(server: Any) -> Iterator[tuple[Connection, Workspace]]:
    with (
        Connection(server.device()) as connection,
        Workspace(connection, str(server.workdir)) as space,
    ):
        yield connection, space


def test_files_arrive_and_come_back(
    workspace: tuple[Connection, Workspace], tmp_path: Path, server: Any
) -> None:
    connection, space = workspace
    names = ["plain", "a b/c 'd'/$(id)", "deep/er/file"]
    uploads = []
    for number, name in enumerate(names):
        source = tmp_path / f"source{number}"
        source.write_bytes(bytes([number]) * 100_000)
        uploads.append(Upload(source, name))
    assert send_files(connection, space, uploads, no_progress) == 300_000
    check_hashes(connection, space, server.device().python, uploads)
    for upload in uploads:
        target = tmp_path / "back"
        assert fetch_file(connection, space, upload.target, target)
        assert target.read_bytes() == upload.source.read_bytes()
    assert not fetch_file(connection, space, "absent", tmp_path / "never")
    assert not (tmp_path / "never").exists()
    Path(space.inside("link")).symlink_to("/etc/passwd")
    assert not fetch_file(connection, space, "link", tmp_path / "never")


def test_damaged_file_is_noticed(
    workspace: tuple[Connection, Workspace], tmp_path: Path, server: Any
) -> None:
    connection, space = workspace
    source = tmp_path / "model.onnx"
    source.write_bytes(b"network")
    uploads = [Upload(source, "model.onnx")]
    send_files(connection, space, uploads, no_progress)
    Path(space.inside("model.onnx")).write_bytes(b"netw0rk")
    with pytest.raises(DeviceError, match=r"model\.onnx arrived damaged"):
        check_hashes(connection, space, server.device().python, uploads)


def test_room_is_looked_at_before_anything_is_copied(
    workspace: tuple[Connection, Workspace],
) -> None:
    connection, space = workspace
    free = check_room(connection, space.path, 0)
    assert free is not None
    with pytest.raises(DiskFullError, match=r"needs \d+ bytes and has \d+ free") as caught:
        check_room(connection, space.path, 1 << 60)
    assert "workdir" in caught.value.hint


@pytest.fixture
def small_disk(server: Any) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    place = server.workdir.parent / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small disk cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_disk_that_fills_up_midway(server: Any, small_disk: Path, tmp_path: Path) -> None:
    source = tmp_path / "large"
    source.write_bytes(bytes(1 << 20))
    with (
        Connection(server.device()) as connection,
        Workspace(connection, str(small_disk)) as space,
        pytest.raises(DiskFullError, match="needs 1048576 bytes"),
    ):
        send_files(connection, space, [Upload(source, "large")], no_progress)
    assert list(small_disk.iterdir()) == []


def test_bench_on_a_small_disk(server: Any, small_disk: Path, result_dir: Path) -> None:
    from edgekit.remote.run import bench_on_device

    with pytest.raises(DiskFullError, match="free"):
        bench_on_device([result_dir], server.device(workdir=str(small_disk)), {})
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "free"),
    [
        (
            "Filesystem     1024-blocks     Used Available Capacity Mounted on\n"
            "/dev/nvme0n1p1   238740300 51211340 175328428      23% /\n",
            175328428 * 1024,
        ),
        (
            "Filesystem           1024-blocks    Used Available Capacity Mounted on\n"
            "//host/my share          1000     999         1     100% /mnt/my share\n",
            1024,
        ),
        ("Filesystem 1024-blocks Used Available Capacity Mounted on\nfull 9 12 -3 133% /\n", 0),
        ("df: no such file\n", None),
        ("", None),
    ],
)
def test_free_space_is_read(text: str, free: int | None) -> None:
    assert parse_df(text) == free
