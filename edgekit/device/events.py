"""What the device part says: JSON lines for a program, or text for a person (``--plain``)."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

from edgekit.errors import EdgekitError

INTERRUPTED = 130


class Ended(BaseException):
    """The process is to end; not an error, so that nothing on the way catches it."""


class Events:
    """Writes events to a binary stream, each in one piece.

    Args:
        stream: where events go.
        plain: write the document alone, indented, and all else as text to standard error.
    """

    def __init__(self, stream: BinaryIO, *, plain: bool) -> None:
        self.plain = plain
        self._stream = stream
        self._last = ""

    def progress(self, text: str, fraction: float) -> None:
        """Tell a stage and the finished fraction of the whole job."""
        if not self.plain:
            self._send({"event": "progress", "text": text, "done": fraction, "total": 1.0})
        elif text != self._last:
            sys.stderr.write(f"[{100 * fraction:3.0f} %] {text}\n")
        self._last = text

    def partial(self, document: Mapping[str, Any]) -> None:
        """Tell what is finished, for the case that the rest never arrives."""
        if not self.plain:
            self._send({"event": "partial", "document": document})

    def result(self, document: Mapping[str, Any]) -> None:
        """Tell the answer, the last event of a command that worked."""
        if self.plain:
            text = json.dumps(document, indent=2, allow_nan=False) + "\n"
            self._stream.write(text.encode())
            self._stream.flush()
        else:
            self._send({"event": "result", "document": document})

    def error(self, error: EdgekitError) -> None:
        """Tell why there is no answer, the last event of a command that failed."""
        self._fail(type(error).__name__, error.message, error.hint or None)

    def bug(self, error: Exception) -> None:
        """Tell of an exception that nobody foresaw; its traceback belongs on standard error."""
        hint = "this is a bug of edgekit: please report the traceback"
        self._fail("Bug", f"{type(error).__name__}: {error}", hint)

    def _fail(self, kind: str, message: str, hint: str | None) -> None:
        if not self.plain:
            told = {"kind": kind, "message": message, "hint": hint}
            self._send({"event": "error", "error": told})
            return
        sys.stderr.write(f"error: {message}\n")
        if hint:
            sys.stderr.write(f"hint: {hint}\n")

    def _send(self, event: Mapping[str, Any]) -> None:
        self._stream.write(json.dumps(event, allow_nan=False).encode() + b"\n")
        self._stream.flush()
