"""Runs an artifact in a process of its own, so that a runtime that crashes takes nothing along.

The request and the answer are files in a temporary folder: JSON for facts, ``.npz`` for tensors.
The child side is :mod:`edgekit.runners.worker`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import (
    ConfigError,
    EdgekitError,
    MissingDependencyError,
    UnsupportedError,
    VerificationError,
)
from edgekit.types import ExecutedLayer

RESULT_NAME = "result.json"
OUTPUTS_NAME = "outputs.npz"
_WORKER_MODULE = "edgekit.runners.worker"
_STDERR_LINES = 5  # enough for an error and its cause; whole tracebacks stay out of reports
# Errors of the child that stay what they are; all others mean that the artifact failed to run.
_KEPT_ERRORS: tuple[type[EdgekitError], ...] = (
    ConfigError,
    MissingDependencyError,
    UnsupportedError,
)


@dataclass(frozen=True, slots=True)
class WorkerRequest:
    """What the child is to run.

    Attributes:
        target: key of the target in the registry; also names it in messages.
        model: the file that the target's runner opens.
        inputs: ``.npz`` with one array for each input, samples on axis 0.
        batch_size: samples at a time, where the artifact leaves the choice.
        stacked: axis 0 of the inputs is not the batch but counts runs, and so does axis 0 of the
            outputs then.
        threads: threads of the runtime; its own choice if ``None``.
        simulate: run the ONNX file in ONNX Runtime, with Q/DQ as float arithmetic.
    """

    target: str
    model: Path
    inputs: Path
    batch_size: int = 1
    threads: int | None = None
    simulate: bool = False
    stacked: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "target": self.target,
            "model": str(self.model),
            "inputs": str(self.inputs),
            "batch_size": self.batch_size,
            "threads": self.threads,
            "simulate": self.simulate,
            "stacked": self.stacked,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WorkerRequest:
        """Read what :meth:`to_dict` wrote."""
        return cls(
            target=str(data["target"]),
            model=Path(data["model"]),
            inputs=Path(data["inputs"]),
            batch_size=int(data["batch_size"]),
            threads=None if data["threads"] is None else int(data["threads"]),
            simulate=bool(data["simulate"]),
            stacked=bool(data["stacked"]),
        )


@dataclass(frozen=True, slots=True)
class WorkerResult:
    """What came back from the child.

    Attributes:
        target: as in the request.
        outputs: output name to array, samples on axis 0; empty if the run failed.
        executed: weighted layers with their executed precision; empty for a simulation.
        versions: package to version of the runtime.
        peak_memory_bytes: largest resident size of the child; ``None`` where the system does not
            tell.
        failure: why the run failed, ready to be raised; ``None`` if it did not.
    """

    target: str
    outputs: Mapping[str, np.ndarray] = field(default_factory=dict)
    executed: tuple[ExecutedLayer, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    peak_memory_bytes: int | None = None
    failure: EdgekitError | None = None


def run_in_child(request: WorkerRequest, timeout_s: float) -> WorkerResult:
    """Run an artifact in a child process and wait for it.

    Args:
        request: what to run.
        timeout_s: seconds after which the child is killed.

    Returns:
        The outputs, or the failure: a crash, a timeout or an error in the child raises nothing
        here, so that one failed target does not stop the others.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-") as name:
        folder = Path(name)
        # The child works elsewhere, so that a module in the current directory shadows none of its.
        absolute = replace(request, model=request.model.resolve(), inputs=request.inputs.resolve())
        try:
            data = ask_worker(_WORKER_MODULE, absolute.to_dict(), folder, timeout_s)
        except EdgekitError as error:
            return WorkerResult(request.target, failure=error)
        return _read_result(request, data, folder)


def ask_worker(
    module: str, request: Mapping[str, Any], folder: Path, timeout_s: float
) -> Mapping[str, Any]:
    """Run ``python -m module`` on a request and return its answer.

    Args:
        module: the child side; it answers by :func:`edgekit.runners.worker.answer_job`.
        request: JSON values; ``target`` and ``model`` are what messages name.
        folder: where request and answer are written, empty so far.
        timeout_s: seconds after which the child is killed.

    Raises:
        EdgekitError: what the child reports, or that it crashed or did not answer in time.
    """
    target, model = str(request["target"]), Path(request["model"])
    job = folder / "request.json"
    job.write_text(json.dumps(request), encoding="utf-8")
    log = folder / "log.txt"
    code = _run(module, job, log, timeout_s)
    if code is None:
        raise child_failure(target, model, f"no answer within {timeout_s:g} s", log)
    if not (folder / RESULT_NAME).exists():
        raise child_failure(target, model, describe_exit(code), log)
    data: Mapping[str, Any] = json.loads((folder / RESULT_NAME).read_text(encoding="utf-8"))
    if data["error"] is not None:
        raise rebuild_error(target, data["error"])
    return data


def _run(module: str, job: Path, log: Path, timeout_s: float) -> int | None:
    """Return the child's exit code, or ``None`` after a timeout."""
    command = [sys.executable, "-m", module, str(job)]
    environment = {**os.environ, "PYTHONFAULTHANDLER": "1"}
    # A file rather than a pipe: it cannot fill up, and a stray grandchild cannot hold it open.
    with log.open("wb") as stream:
        try:
            return subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                cwd=job.parent,
                env=environment,
                timeout=timeout_s,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return None


def describe_exit(code: int) -> str:
    """Say how a process ended, given its return code, which is negative after a signal."""
    if code >= 0:
        return f"its process ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"its process crashed with {name}"


def child_failure(target: str, model: Path, what: str, log: Path) -> VerificationError:
    """Return the error for a child that gave no answer, with the last lines of its log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    told = [line.strip() for line in lines if line.strip()][-_STDERR_LINES:]
    tail = f": {' | '.join(told)}" if told else ""
    return VerificationError(
        f"target '{target}': {what} while running '{model.name}'{tail}",
        "the runtime cannot run this artifact; try another version of the runtime",
    )


def _read_result(request: WorkerRequest, data: Mapping[str, Any], folder: Path) -> WorkerResult:
    with np.load(folder / OUTPUTS_NAME, allow_pickle=False) as archive:
        outputs = {name: archive[f"arr_{i}"] for i, name in enumerate(data["outputs"])}
    return WorkerResult(
        target=request.target,
        outputs=outputs,
        executed=tuple(ExecutedLayer(**layer) for layer in data["executed"]),
        versions=data["versions"],
        peak_memory_bytes=data["peak_memory_bytes"],
    )


def rebuild_error(target: str, error: Mapping[str, str]) -> EdgekitError:
    """Return the error that a child reported, as far as its kind is kept, with its target."""
    kept = next((kind for kind in _KEPT_ERRORS if kind.code == error["code"]), VerificationError)
    return kept(f"target '{target}': {error['message']}", error["hint"])
