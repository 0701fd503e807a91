"""The fence around code that the user brought: a network's module, factory or forward pass."""

from __future__ import annotations

import contextlib
import sys
import sysconfig
import traceback
from pathlib import Path
from types import TracebackType

from edgekit.errors import ConfigError, EdgekitError
from edgekit.files.wording import printable


class UserCode:
    """Run foreign code as a context: whatever it raises is the user's error, not our bug.

    Foreign code may raise any class of exception, so naming a few would let others through as
    crashes of edgekit. What it prints goes to standard error, since standard output belongs to
    the result.

    Args:
        what: what is being done, for the message: ``"building my_net:Net"``.
        hint: what to do when it fails.
    """

    def __init__(self, what: str, hint: str = "") -> None:
        self._what = what
        self._hint = hint
        self._stdout = contextlib.redirect_stdout(sys.stderr)

    def __enter__(self) -> None:
        self._stdout.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stdout.__exit__(kind, error, trace)
        if not isinstance(error, Exception | SystemExit) or isinstance(error, EdgekitError):
            return  # all went well, or the user pressed Ctrl-C, or it is told already
        text = printable(" ".join(str(error).split()), 300)
        reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
        raise ConfigError(f"{self._what} failed{_place(trace)}: {reason}", self._hint) from error


def _place(trace: TracebackType | None) -> str:
    """Return the innermost line that belongs neither to edgekit nor to an installed package."""
    ours = Path(__file__).parent
    installed = tuple(Path(sysconfig.get_path(key)) for key in ("stdlib", "purelib", "platlib"))
    for frame in reversed(traceback.extract_tb(trace)):
        file = Path(frame.filename)
        if file.is_file() and not any(file.is_relative_to(path) for path in (ours, *installed)):
            return f" at {file.name}, line {frame.lineno}"
    return ""
