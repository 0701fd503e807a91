"""The working process of the device part: ``python -m edgekit.device.job COMMAND``.

Started by :mod:`edgekit.device.__main__` in a session of its own. The request is the first line of
its standard input, whose end means that the starter is gone: then the whole session ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from types import FrameType

from edgekit.device.events import INTERRUPTED, Ended, Events
from edgekit.errors import EdgekitError

_BUG = 3
_GRACE_S = 5.0


def main(arguments: Sequence[str]) -> int:
    """Run one command and return the exit code."""
    # Runtimes write lines of their own to standard output: those go to standard error.
    stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    events = Events(stream, plain="--plain" in arguments)
    signal.signal(signal.SIGTERM, _end)
    request = json.loads(sys.stdin.buffer.readline() or b"null")
    threading.Thread(target=_end_with_starter, daemon=True).start()
    if request is None:
        return INTERRUPTED
    try:
        from edgekit.device.commands import run_command  # numpy: only now that signals are handled

        events.result(run_command(arguments[0], request, events))
        return 0
    except EdgekitError as error:
        events.error(error)
        return error.exit_code
    except (Ended, BrokenPipeError):
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the boundary: a bug must reach the requester too
        traceback.print_exc()
        events.bug(error)
        return _BUG


def _end(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Ended


def _end_with_starter() -> None:
    while os.read(0, 4096):
        pass
    # Workers are in this process group; they need no ceremony, this process cleans up behind them.
    os.killpg(0, signal.SIGTERM)
    time.sleep(_GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.exit(code)
