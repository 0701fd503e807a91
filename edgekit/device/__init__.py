"""The part of edgekit that runs on a device: ``python -m edgekit.device COMMAND [REQUEST.json]``.

It needs Python 3.10, NumPy and a runtime; neither torch, typer, rich nor onnx. Requests and
answers are JSON (``docs/jetson.md``); ``NAME=VALUE`` behind the request changes an option of it.
Standard output carries one event in a line, the last of which is ``result`` or ``error``; standard
error is free text. Paths are relative to the current folder. Exit codes are those of the command
line: 0 for a result, 1 for a failed check, 2 for an error of the user's, 3 for a bug, 130 when it
was ended.

Two processes: :mod:`edgekit.device.__main__` watches over a child in a session of its own, the
*job* (:mod:`edgekit.device.job`), whose workers belong to that session too. SIGINT, SIGTERM,
SIGHUP, or a standard output that nobody reads any more, end the whole session. With ``--tied`` the
end of standard input does so as well; the request then is the first document on it. So does the
death of the watching process itself.
"""

from __future__ import annotations
