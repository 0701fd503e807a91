"""One hostile file, how it is proven to be dangerous, and how edgekit is run on it."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MODEL = "model.pt"
MARKER = "marker"
ZOO = "zoo:efficientnet_lite0"
_PROCESS_EVENTS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen")


class Command:
    """Pickles as the call of a shell command that writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"echo run > '{self.marker}'",)


@dataclass(frozen=True)
class Case:
    """A file, the command that is run on it, and what must be said about it.

    Attributes:
        name: says what the file does.
        write: makes the files in an empty folder; what they run must write the marker.
        said: regular expression that the error must match.
        proof: opens the file as careless code would, which must write the marker; ``None`` for
            files that attack in another way.
        words: the command line, run in the folder.
        codes: the error codes that are right.
    """

    name: str
    write: Callable[[Path, Path], None]
    said: str
    proof: Callable[[Path], object] | None = None
    words: tuple[str, ...] = ("quantize", MODEL)
    codes: tuple[str, ...] = ("unsafe_file",)


@dataclass(frozen=True)
class Outcome:
    """What edgekit did: ``executed`` and ``tracebacks`` must both be false."""

    executed: bool
    traceback: bool
    code: int
    error: dict[str, str]
    left: tuple[str, ...] = ()
    output: str = field(default="", repr=False)


def file_case(
    name: str,
    content: Callable[[Path], bytes],
    said: str,
    proof: Callable[[Path], object] | None = None,
    words: tuple[str, ...] = ("quantize", MODEL),
    codes: tuple[str, ...] = ("unsafe_file",),
) -> Case:
    """Return the case of one file; ``content`` is given where the marker would be."""

    def write(folder: Path, marker: Path) -> None:
        (folder / MODEL).write_bytes(content(marker))

    return Case(name, write, said, proof, words, codes)


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before, modules = Path.cwd(), set(sys.modules)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        for name in {"evil_net", "evil_enum"} & (set(sys.modules) - modules):
            del sys.modules[name]


def _write(case: Case, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case.write(folder, folder / MARKER)


def prove(case: Case, folder: Path) -> bool:
    """Whether careless code runs what the file contains; an error behind that is expected."""
    assert case.proof is not None
    _write(case, folder)
    logging.disable()  # torch logs what went wrong, with tracebacks
    with (
        _inside(folder),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.suppress(Exception),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        case.proof(folder / MODEL)
    logging.disable(logging.NOTSET)
    return (folder / MARKER).exists()


class _Tracebacks(logging.Handler):
    """Counts the tracebacks that a package logs; they go past a redirected standard error."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += bool(record.exc_info and record.exc_info[1])

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        known = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict)]
        for logger in (logging.root, *known):
            logger.addHandler(self)
        try:
            yield
        finally:
            for logger in (logging.root, *known):
                logger.removeHandler(self)


class _Processes:
    """Counts the processes that this one starts while a case runs; Python has no way to stop it."""

    _watching = False
    count = 0

    @classmethod
    def _hear(cls, event: str, _arguments: tuple[object, ...]) -> None:
        if cls._watching and event in _PROCESS_EVENTS:
            cls.count += 1

    @classmethod
    @contextlib.contextmanager
    def counted(cls) -> Iterator[None]:
        if not hasattr(cls, "_hook"):
            cls._hook = sys.addaudithook(cls._hear)
        cls.count, cls._watching = 0, True
        try:
            yield
        finally:
            cls._watching = False


def run(case: Case, folder: Path) -> Outcome:
    """Run the command of a case in this process, as ``edgekit ... --json`` would."""
    os.environ.setdefault("CI", "true")  # where this is set, packages report no usage
    importlib.import_module("edgekit.pipeline")  # some packages start a process when imported
    from edgekit.cli import main

    _write(case, folder)
    before = {path.name for path in folder.iterdir()}
    out, err, escaped, logged = io.StringIO(), io.StringIO(), False, _Tracebacks()
    code = -1
    with (
        _inside(folder),
        _Processes.counted(),
        logged.listening(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            code = main([*case.words, "--json"])
        except BaseException:  # noqa: BLE001 - whatever escapes is what this looks for
            escaped = True
    executed = (folder / MARKER).exists() or _Processes.count > 0
    output = out.getvalue() + err.getvalue()
    shown = logged.count > 0 or "Traceback (most recent call last)" in output
    traceback = escaped or code == 3 or shown
    left = {path.name for path in folder.iterdir()} - before - {"__pycache__"}
    return Outcome(executed, traceback, code, _error(out.getvalue()), tuple(sorted(left)), output)


def _error(text: str) -> dict[str, str]:
    try:
        document = json.loads(text)
    except ValueError:
        return {}
    error = document.get("error") if isinstance(document, dict) else None
    return error if isinstance(error, dict) else {}
