"""The child side of :mod:`edgekit.runners.child`: ``python -m edgekit.runners.worker REQUEST``.

It opens one artifact, runs the given inputs and writes ``result.json`` and ``outputs.npz`` beside
the request. An error that has a name is written there too; anything else ends in a traceback.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import EdgekitError, LoadError
from edgekit.runners import open_model
from edgekit.runners.child import OUTPUTS_NAME, RESULT_NAME, WorkerRequest
from edgekit.runners.tensors import infer_batches, infer_runs

_STATUS = Path("/proc/self/status")


def main(job: Path) -> None:
    """Run the request in the file ``job`` and write the answer into the same folder."""
    answer_job(job, lambda data: _run(WorkerRequest.from_dict(data), job.parent / OUTPUTS_NAME))


def answer_job(job: Path, run: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Pass the request in the file ``job`` to ``run`` and write what it returns beside it.

    An :class:`EdgekitError` is an answer, too.
    """
    try:
        answer = {"error": None, **run(json.loads(job.read_text(encoding="utf-8")))}
    except EdgekitError as error:
        answer = {"error": error.to_dict()}
    # Written last and in one piece: its presence tells the parent that the run is over.
    partial = job.parent / f"{RESULT_NAME}.part"
    partial.write_text(json.dumps(answer), encoding="utf-8")
    partial.replace(job.parent / RESULT_NAME)


def _run(request: WorkerRequest, outputs_path: Path) -> dict[str, Any]:
    feeds = _read_inputs(request.inputs)
    runner = open_model(
        request.target, request.model, threads=request.threads, simulate=request.simulate
    )
    with runner:
        if request.stacked:
            outputs = infer_runs(runner, feeds)
        else:
            outputs = infer_batches(runner, feeds, request.batch_size)
        # In a simulation the kernels are not those of the target: they would prove nothing.
        executed = [] if request.simulate else runner.executed_layers()
        versions = runner.versions
    # By position: an output may have any name, also one that savez takes for its own argument.
    np.savez(outputs_path, *outputs.values())
    return {
        "outputs": list(outputs),
        "executed": [asdict(layer) for layer in executed],
        "versions": versions,
        "peak_memory_bytes": peak_memory_bytes(),
    }


def _read_inputs(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise LoadError(f"inputs '{path}' cannot be read: {error}") from error


def peak_memory_bytes() -> int | None:
    """Return the largest resident size of this process so far; ``None`` if it is not told."""
    # Not getrusage: Linux carries its maximum over from the parent that started this process.
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
