"""Progress on standard error, the result on standard output, and nobody else on either."""

from __future__ import annotations

import logging
import os
import pty
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from edgekit import console
from edgekit.console import UnprintableError, tell, working, write

NOISY = """
import ctypes, logging, os, sys, warnings
from edgekit.console import working, write
with working("first") as progress:
    progress("second", 0.5)
    print("python")
    os.write(1, b"descriptor\\n")
    ctypes.CDLL(None).puts(b"native")
    warnings.warn("a warning")
    logging.getLogger("torch").warning("a log record")
write("result\\n")
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=True
    )


def test_only_the_result_reaches_standard_output() -> None:
    done = run("-c", NOISY)
    assert done.stdout == "result\n"
    lines = done.stderr.splitlines()
    assert {"python", "descriptor", "native"} <= set(lines)
    assert "a warning" not in done.stderr
    assert "a log record" not in done.stderr


def test_warnings_show_where_python_is_asked_for_them() -> None:
    done = run("-W", "default", "-c", NOISY)
    assert done.stdout == "result\n"
    assert "UserWarning: a warning" in done.stderr
    assert "a log record" in done.stderr


def test_plain_progress_has_one_line_for_each_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with working("load") as progress:
        progress("load", 0.0)
        progress("calibrate", 0.1)
        progress("calibrate", 0.2)
        progress("verify", 0.9)
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert all(re.fullmatch(r"\[ +\d+\.\d s\] \w+", line) for line in lines), lines
    assert [line.split()[-1] for line in lines] == ["load", "calibrate", "verify"]


def test_plain_progress_of_counted_rounds_has_a_line_every_few_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with working("load") as progress:
        progress("calibrate", 0.1)
        for index in range(1, 31):
            now += 1.0  # a round takes a second
            progress(f"distill {index}/30: statistics 0.5, 3 s left", 0.1 + index / 100)
        progress("quantize", 0.5)
    told = [line.split("] ")[1].split(":")[0] for line in capsys.readouterr().err.splitlines()]
    counted = ["distill 10/30", "distill 20/30", "distill 30/30"]
    assert told == ["load", "calibrate", *counted, "quantize"]


def test_silence_ends_with_the_work(capfd: pytest.CaptureFixture[str]) -> None:
    filters, stdout = list(warnings.filters), sys.stdout
    with working("load"):
        assert warnings.filters != filters
        assert not logging.getLogger("torch").isEnabledFor(logging.WARNING)
    assert warnings.filters == filters
    assert logging.getLogger("torch").isEnabledFor(logging.WARNING)
    assert sys.stdout is stdout
    os.write(1, b"after\n")
    assert capfd.readouterr().out == "after\n"


def test_terminal_gets_a_bar_that_vanishes(tmp_path: Path) -> None:
    code = (
        "from edgekit.console import working\n"
        "with working('load') as progress:\n"
        "    progress('calibrate [a/b]', 0.5)\n"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment,
        timeout=60,
        check=True,
    )
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.stdout == b""
    assert "load" in shown
    assert "calibrate [a/b]" in shown
    assert "0:00:0" in shown
    assert shown.rstrip().endswith("\x1b[2K")  # the last thing is to clear the line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_full_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        with pytest.raises(UnprintableError, match="No space left") as caught:
            write("result\n")
    assert caught.value.exit_code == 1  # what was made is kept


def test_reader_that_has_seen_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "w") as closed, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", closed)
        write("result\n")
        write("more\n")


def test_nobody_listens_to_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "w") as closed, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", closed)
        tell("error: heard by nobody\n")
        with working("load") as progress:
            progress("capture", 0.5)


def test_name_that_cannot_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    write("caf\udce9.pt\n")
    assert capsys.readouterr().out == "caf\\udce9.pt\n"
