"""One request to one module in a child process, answered in JSON.

Native code that may crash, print or hang is kept out of the calling process. The module is started
as ``python -m MODULE REQUEST RESULT`` and writes ``{"error": ...}`` for an edgekit error.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.errors import ConfigError, ExportError, OutputError

_LOG_LINES = 5
_ERRORS = {error.code: error for error in (ConfigError, ExportError, OutputError)}


class WorkerProcess:
    """A module at work. Its folder holds the request, the answer and all that it printed.

    Leaving the ``with`` block, dropping the object or ending the interpreter kills a child that
    still runs and removes the folder.
    """

    def __init__(
        self, module: str, request: Mapping[str, Any], environment: Mapping[str, str]
    ) -> None:
        self._started = time.monotonic()
        self._folder = Path(tempfile.mkdtemp(prefix="edgekit-"))
        (self._folder / "request.json").write_text(json.dumps(request))
        with (self._folder / "log.txt").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, "request.json", "result.json"],
                # Its own folder: a checkout in the current one would shadow the installed package.
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
            )
        self._discard = weakref.finalize(self, _discard, self._process, self._folder)

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the child if it still runs and remove its folder. Safe to call twice."""
        self._discard()

    def result(self, timeout_s: float, what: str) -> dict[str, Any]:
        """Wait for the answer.

        Args:
            timeout_s: seconds since the start of the child.
            what: the subject of the error message, such as ``"TensorRT 10.3 building 'm.onnx'"``.

        Raises:
            EdgekitError: what the child raised.
            ExportError: the child crashed or took too long; the message has its last output.
        """
        remaining = self._started + timeout_s - time.monotonic()
        try:
            code = self._process.wait(max(0.0, remaining))
        except subprocess.TimeoutExpired as error:
            raise ExportError(
                f"{what} did not finish within {timeout_s:g} s; last output: {self._last_lines()}",
                "raise the timeout, or do this step on the device",
            ) from error
        if code != 0:
            raise ExportError(
                f"{what} crashed ({_ending(code)}); last output: {self._last_lines()}",
                "this is a failure inside the runtime's native code: try another version of it",
            )
        result: dict[str, Any] = json.loads((self._folder / "result.json").read_text())
        if "error" in result:
            failure = result["error"]
            raise _ERRORS[failure["code"]](failure["message"], failure["hint"])
        return result

    def _last_lines(self) -> str:
        text = (self._folder / "log.txt").read_text(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return " | ".join(lines[-_LOG_LINES:]) or "none"


def _discard(process: subprocess.Popen[bytes], folder: Path) -> None:
    process.kill()
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a real-time signal has no name
        name = f"signal {-code}"
    return f"{name}, probably out of memory" if name == "SIGKILL" else name
