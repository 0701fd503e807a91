"""The one place where what ends a command becomes an exit code and a message."""

from __future__ import annotations

import json
import signal
import time
import traceback
from types import FrameType, TracebackType
from typing import Any, NamedTuple

import typer

from edgekit.console import tell, write
from edgekit.errors import EdgekitError
from edgekit.types import Progress

# Typer re-exports one usage error only, and its newer versions bring a click of their own.
_USAGE_ERROR = typer.BadParameter.__bases__[0]
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_IMPATIENCE_S = 2.0


class _Failure(NamedTuple):
    exit_code: int
    code: str
    message: str
    hint: str


class Boundary:
    """Runs a command as a context: whatever ends it becomes ``exit_code`` and one message.

    SIGINT, SIGTERM and SIGHUP arrive in the command as a ``KeyboardInterrupt``, so that every
    stage cleans up behind itself. For the main thread only, which alone receives signals.

    Args:
        as_json: the message goes to standard output as a JSON document.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.exit_code = 0
        self._as_json = as_json
        self._settled = False
        self._interrupted_at: float | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def settling(self, progress: Progress) -> Progress:
        """Return a progress after whose last stage no signal ends the command any more.

        Its result is in place then and only to be shown: an interrupt would come too late.
        """

        def show(stage: str, fraction: float) -> None:
            self._settled = self._settled or stage == "done"
            progress(stage, fraction)

        return show

    def __enter__(self) -> None:
        for number in _SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # ignored under nohup
                self._handlers[number] = signal.signal(number, self._interrupt)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        before, self._interrupted_at = self._interrupted_at, time.monotonic()
        # A second Ctrl-C close behind the first must not cut the clean-up short.
        hurried = before is not None and self._interrupted_at - before < _IMPATIENCE_S
        if not hurried and not self._settled:
            raise KeyboardInterrupt

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if isinstance(error, typer.Exit):
            self.exit_code = error.exit_code
        elif error is not None:
            failure = self._failure(error)
            if failure.code == "bug":
                tell("".join(traceback.format_exception(error)))
            self.exit_code = failure.exit_code
            self._show(failure)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        return True

    def _failure(self, error: BaseException) -> _Failure:
        # Interrupted imports and children fail in ways of their own; the cause is the signal.
        interrupted = self._interrupted_at is not None and not self._settled
        if interrupted or isinstance(error, KeyboardInterrupt):
            # The text of a stage that keeps something says where.
            kept = str(error) if isinstance(error, KeyboardInterrupt) else ""
            return _Failure(130, "interrupted", "interrupted", kept or "nothing was written")
        if isinstance(error, EdgekitError):
            return _Failure(error.exit_code, error.code, error.message, error.hint)
        if isinstance(error, _USAGE_ERROR):
            message: str = error.format_message()  # type: ignore[attr-defined]
            return _Failure(2, "usage", message, _usage_hint(error))
        text = f"{type(error).__name__}: {error}"
        return _Failure(3, "bug", text, "this is a bug of edgekit: please report the traceback")

    def _show(self, failure: _Failure) -> None:
        _, code, message, hint = failure
        if self._as_json:
            write_json({"error": {"code": code, "message": message, "hint": hint}})
            return
        tell(f"error: {_one_line(message)}\n")
        if hint:
            tell(f"hint: {_one_line(hint)}\n")


def write_json(document: object) -> None:
    """Print the one JSON document of a command; ASCII, so that no locale makes it unprintable."""
    write(json.dumps(document, indent=2, allow_nan=False) + "\n")


def _usage_hint(error: BaseException) -> str:
    context = getattr(error, "ctx", None)
    command = "edgekit" if context is None else context.command_path
    return f"see: {command} --help"


def _one_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines())
