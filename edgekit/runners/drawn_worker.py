"""The child side of :mod:`edgekit.runners.drawn`: runs one artifact and writes its outputs."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.runners import open_model
from edgekit.runners.child import OUTPUTS_NAME
from edgekit.runners.timing import TimingRequest
from edgekit.runners.timing_worker import draw_feeds
from edgekit.runners.worker import answer_job


def main(job: Path) -> None:
    """Run the request in the file ``job`` and write the answer into the same folder."""
    answer_job(job, lambda data: _run(data, job.parent / OUTPUTS_NAME))


def _run(data: dict[str, Any], outputs_path: Path) -> dict[str, Any]:
    runs = data.pop("runs")
    request = TimingRequest.from_dict(data)
    runner = open_model(
        request.target, request.model, threads=request.threads, options=request.options
    )
    with runner:
        feeds = draw_feeds(runner.inputs, request)
        found = [runner.infer(draw_feeds(runner.inputs, request, seed)) for seed in range(runs)]
        executed = runner.executed_layers()
    # By position: an output may have any name, also one that savez takes for its own argument.
    np.savez(outputs_path, *(np.stack([run[name] for run in found]) for name in found[0]))
    return {
        "inputs": {name: list(array.shape) for name, array in feeds.items()},
        "outputs": list(found[0]),
        "executed": [asdict(layer) for layer in executed],
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
