"""A result directory appears whole or not at all, also where the disk is full."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgekit.errors import ConfigError, OutputError
from edgekit.output import AtomicDirectory


def contents(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def work(out: Path, do: Callable[[Path], object]) -> None:
    """A job that writes into `out` by `do`."""
    with AtomicDirectory(out) as directory:
        do(directory.path)
        directory.commit()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    command = [mount, "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"cannot mount a small file system: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Write until the disk refuses."""
    with pytest.raises(OSError, match="No space left"):
        (folder / "large").write_bytes(bytes(1 << 20))


def test_nothing_shows_before_the_commit(tmp_path: Path) -> None:
    with AtomicDirectory(tmp_path / "out") as directory:
        (directory.path / "inner").mkdir()
        (directory.path / "inner" / "file").write_text("content")
        assert directory.path.parent == tmp_path  # the same file system: a rename is enough
        assert directory.path.name.startswith(".out.")
        assert not (tmp_path / "out").exists()
        directory.commit()
    assert contents(tmp_path) == ["out", "out/inner", "out/inner/file"]


def test_permissions_are_those_of_any_new_directory(tmp_path: Path) -> None:
    (tmp_path / "usual").mkdir()
    with AtomicDirectory(tmp_path / "out") as directory:
        directory.commit()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual", "out")]
    assert modes[0] == modes[1]


def test_without_commit_nothing_remains(tmp_path: Path) -> None:
    with AtomicDirectory(tmp_path / "out") as directory:
        (directory.path / "file").write_text("content")
    assert contents(tmp_path) == []


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), ConfigError("a mistake"), KeyboardInterrupt()], ids=str
)
def test_any_error_leaves_nothing_and_goes_on(tmp_path: Path, error: BaseException) -> None:
    def do(folder: Path) -> None:
        (folder / "file").write_text("content")
        raise error

    with pytest.raises(type(error)) as caught:
        work(tmp_path / "new" / "deeper" / "out", do)
    assert caught.value is error
    assert contents(tmp_path) == []


def test_folders_above_stay_where_others_use_them(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with AtomicDirectory(tmp_path / "old" / "new" / "out"):
        (tmp_path / "old" / "new" / "foreign").write_text("of another process")
    assert contents(tmp_path) == ["old", "old/new", "old/new/foreign"]


def test_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with AtomicDirectory(Path("out")) as directory:
        (directory.path / "file").write_text("content")
        directory.commit()
    assert contents(tmp_path) == ["out", "out/file"]


@pytest.mark.parametrize("kind", ["empty folder", "folder", "file", "broken link"])
def test_what_exists_is_left_alone(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("precious")
    elif kind == "broken link":
        out.symlink_to("nowhere")
    else:
        out.mkdir()
    if kind == "folder":
        (out / "file").write_text("precious")
    before = contents(tmp_path)
    with pytest.raises(OutputError, match="exists already") as caught, AtomicDirectory(out):
        pytest.fail("entered")
    assert "--out" in caught.value.hint
    assert contents(tmp_path) == before


def test_directory_that_appears_meanwhile_is_left_alone(tmp_path: Path) -> None:
    def do(_folder: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "file").write_text("of another process")

    with pytest.raises(OutputError, match="cannot be written: Directory not empty"):
        work(tmp_path / "out", do)
    assert contents(tmp_path) == ["out", "out/file"]


@pytest.mark.parametrize("below", ["file/out", "file/new/out"])
def test_path_below_a_file(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("content")
    with pytest.raises(OutputError, match="cannot be written"), AtomicDirectory(tmp_path / below):
        pytest.fail("entered")
    assert contents(tmp_path) == ["file"]


@pytest.mark.parametrize("length", [250, 300])  # the working folder's name is a little longer
def test_name_too_long(tmp_path: Path, length: int) -> None:
    out = tmp_path / "new" / ("n" * length)
    with pytest.raises(OutputError, match="File name too long"), AtomicDirectory(out):
        pytest.fail("entered")
    assert contents(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"), AtomicDirectory(tmp_path / "out"):
        pytest.fail("entered")
    tmp_path.chmod(0o700)


@pytest.mark.parametrize("told", [True, False], ids=["as OSError", "by native code"])
def test_full_disk(small_disk: Path, told: bool) -> None:
    def do(folder: Path) -> None:
        fill(folder)
        if told:
            (folder / "more").write_bytes(bytes(1 << 16))
        raise RuntimeError("iostream error")

    with pytest.raises(OutputError, match="No space left") as caught:
        work(small_disk / "out", do)
    assert str(small_disk / "out") in caught.value.message
    assert contents(small_disk) == []


def test_full_disk_explains_no_edgekit_error(small_disk: Path) -> None:
    def do(folder: Path) -> None:
        fill(folder)
        raise ConfigError("a mistake")

    with pytest.raises(ConfigError, match="a mistake"):
        work(small_disk / "out", do)
    assert contents(small_disk) == []


def test_full_disk_elsewhere_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught, AtomicDirectory(tmp_path / "out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/elsewhere/file")
    assert caught.value.message == "'/elsewhere/file' cannot be written: No space left on device"
    with pytest.raises(OutputError) as caught, AtomicDirectory(tmp_path / "out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # an archive knows no file name
    assert caught.value.message.startswith(f"'{tempfile.gettempdir()}' cannot be written")


def test_other_system_errors_are_not_about_space(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError), AtomicDirectory(tmp_path / "out"):
        raise ConnectionError("refused")
    assert contents(tmp_path) == []
