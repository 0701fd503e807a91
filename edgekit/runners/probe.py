"""Says what a runtime sees on this machine: ``python -m edgekit.runners.probe NAME``.

A process of its own, because an import may crash, and because the parent has no use for what a
runtime loads. ``gpus`` as name asks the CUDA driver.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from edgekit.errors import EdgekitError
from edgekit.registry import RUNNERS, resolve

GPUS = "gpus"
_TIMEOUT_S = 120.0  # a first import from a cold disk, on a small device


@dataclass(frozen=True, slots=True)
class Probe:
    """What came back.

    Attributes:
        data: what the runtime tells; empty if it failed.
        missing: why it cannot be used here, such as a package that is not installed.
        broken: how its process ended, if it crashed or hung.
    """

    data: Mapping[str, Any] = field(default_factory=dict)
    missing: str | None = None
    broken: str | None = None


def probe(name: str) -> Probe:
    """Ask in a fresh process.

    Args:
        name: key of a runtime in the registry, or :data:`GPUS`.
    """
    command = [sys.executable, "-m", "edgekit.runners.probe", name]
    # Elsewhere, so that a module in the current directory shadows none of the runtime's.
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        try:
            run = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                cwd=folder,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Probe(broken=f"no answer within {_TIMEOUT_S:g} s")
    # Runtimes may write lines of their own: the answer is the last one.
    lines = run.stdout.decode("utf-8", "replace").splitlines()
    if run.returncode != 0 or not lines:
        told = [line for line in run.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        return Probe(broken=told[-1].strip() if told else f"exit code {run.returncode}")
    return Probe(**json.loads(lines[-1]))


def _answer(name: str) -> dict[str, Any]:
    try:
        if name != GPUS:
            return {"data": resolve(RUNNERS, name, "target").describe()}
        from edgekit.runners.gpus import list_gpus

        return {"data": {"gpus": [asdict(gpu) for gpu in list_gpus()]}}
    except EdgekitError as error:
        # Installed but not to be imported: a library of the system or another version is missing.
        failed = isinstance(error.__cause__, ImportError)
        broken = failed and not isinstance(error.__cause__, ModuleNotFoundError)
        return {"broken" if broken else "missing": error.message}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_answer(sys.argv[1])) + "\n")
