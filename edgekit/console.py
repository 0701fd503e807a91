"""The terminal: progress while a command works, nothing of anybody else, and at last its result."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from edgekit.errors import OutputError
from edgekit.types import Progress

_COUNTED = re.compile(r"\d+/\d+")  # as in "distill 12/150: ..."
_COUNT_EVERY_S = 10.0


class UnprintableError(OutputError):
    """Standard output cannot be written; what the command has made stays (exit code 1)."""

    exit_code = 1


def write(text: str) -> None:
    """Write a result to standard output.

    Raises:
        UnprintableError: standard output is full. A reader that has seen enough, as in
            ``edgekit zoo list | head -1``, is no error.
    """
    encoding = sys.stdout.encoding or "utf-8"
    try:
        # A file name need not be printable; the rest of the result still is.
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        _forget(sys.stdout)
    except OSError as error:
        _forget(sys.stdout)
        raise UnprintableError(f"standard output cannot be written: {error.strerror}") from error


def tell(text: str) -> None:
    """Write a message to standard error; nothing fails because nobody listens there."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        _forget(sys.stderr)


def _forget(stream: TextIO) -> None:
    # The interpreter writes what is left in the buffer when it ends: that must not fail again.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@contextmanager
def working(first: str) -> Iterator[Progress]:
    """Show progress on standard error and keep everybody else silent.

    On a terminal: one line with stage, bar and elapsed time, gone at the end. Else one plain line
    for each stage, and where a stage counts its rounds, one every few seconds.

    Args:
        first: name of the stage that begins now.
    """
    display = _bar if sys.stderr.isatty() else _lines
    with _quiet(), _stdout_to_stderr(), display(first) as progress:
        yield progress


@contextmanager
def _bar(first: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(complete_style="cyan", finished_style="cyan"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(first, total=1.0)

        def show(stage: str, fraction: float) -> None:
            bar.update(task, description=stage, completed=fraction)

        yield show


@contextmanager
def _lines(first: str) -> Iterator[Progress]:
    started = told = time.monotonic()
    last = ""

    def show(stage: str, _fraction: float) -> None:
        nonlocal last, told
        now = time.monotonic()
        if stage == last or (_COUNTED.search(stage) and now - told < _COUNT_EVERY_S):
            return
        tell(f"[{now - started:6.1f} s] {stage}\n")
        last, told = stage, now

    show(first, 0.0)
    yield show


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what libraries warn of among themselves, unless ``python -W`` asks for it."""
    if sys.warnoptions:
        yield
        return
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Keep standard output for the result, also from native code that knows only descriptor 1."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what native code has buffered belongs to its own time
        os.dup2(saved, 1)
        os.close(saved)
