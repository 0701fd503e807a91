"""Whether a device can run the torch-free part at all, asked before anything is copied."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any

from edgekit.remote.connection import Answer, Connection
from edgekit.remote.errors import DeviceError

LEAST_PYTHON = (3, 10)
_TIMEOUT_S = 120.0  # a first import of NumPy from a cold disk, on a small device
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126
_RELEASE = "/etc/nv_tegra_release"
# In a Python that old ones read as well: what they are is the question.
_QUESTION = """
import json, sys
facts = {"python": list(sys.version_info[:3]), "numpy": None, "problem": None}
try:
    import numpy
    facts["numpy"] = numpy.__version__
except Exception:
    facts["problem"] = str(sys.exc_info()[1])
print("")
print(json.dumps(facts))
"""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """Python on the device: its path or name, its version, and NumPy's."""

    program: str
    version: str
    numpy: str


def find_interpreter(connection: Connection) -> Interpreter:
    """Examine the device's Python.

    Raises:
        DeviceError: there is none, it is too old, or NumPy is missing.
        ConnectionLostError: the connection broke.
    """
    device, where = connection.device, connection.endpoint.label
    program = at_home(connection, device.python)
    answer = connection.run([program, "-c", _QUESTION], timeout_s=_TIMEOUT_S)
    facts = _facts(answer)
    if facts is None:
        raise _no_python(connection, program, answer)
    version = ".".join(str(part) for part in facts["python"])
    if tuple(facts["python"][:2]) < LEAST_PYTHON:
        raise DeviceError(
            f"{where}: '{program}' is Python {version}, at least 3.10 is needed"
            + _release(connection),
            "JetPack 6 has Python 3.10, JetPack 7 has 3.12; elsewhere set python in devices.toml "
            "to a newer one",
        )
    if facts["numpy"] is None:
        install = shlex.join([program, "-m", "pip", "install", "numpy>=1.24,<3"])
        raise DeviceError(
            f"{where}: '{program}' (Python {version}) cannot import NumPy: {facts['problem']}",
            f"install it on the device: {install}, or: apt install python3-numpy",
        )
    return Interpreter(program, version, str(facts["numpy"]))


def at_home(connection: Connection, path: str) -> str:
    """Return a path with its leading ``~/`` as the home folder of the device's user."""
    if not path.startswith("~/"):
        return path
    home = str(connection.sftp().normalize("."))
    return f"{home}/{path.removeprefix('~/')}"


def _facts(answer: Answer) -> dict[str, Any] | None:
    lines = answer.stdout.splitlines()
    if answer.status != 0 or not lines:
        return None
    try:
        facts = json.loads(lines[-1])
    except ValueError:
        return None
    return facts if isinstance(facts, dict) and "python" in facts else None


def _no_python(connection: Connection, program: str, answer: Answer) -> DeviceError:
    where = connection.endpoint.label
    hint = "install python3 there, or set python in devices.toml to the path of an interpreter"
    if answer.status in (_NOT_FOUND, _NOT_EXECUTABLE):
        return DeviceError(f"{where} has no Python: '{program}' is not there", hint)
    told = [line for line in answer.stderr.splitlines() if line.strip()]
    return DeviceError(
        f"{where}: '{program}' does not run: {told[-1] if told else f'status {answer.status}'}",
        hint,
    )


def _release(connection: Connection) -> str:
    answer = connection.run(["cat", _RELEASE])
    first = answer.stdout.partition("\n")[0].strip("# ")
    return f" ({first})" if answer.status == 0 and first else ""
