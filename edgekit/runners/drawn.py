"""What artifacts compute from drawn inputs, and how: the same inputs for every artifact.

The child side is :mod:`edgekit.runners.drawn_worker`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgekit.runners.child import OUTPUTS_NAME, ask_worker
from edgekit.runners.timing import TimingRequest
from edgekit.types import ExecutedLayer

_WORKER_MODULE = "edgekit.runners.drawn_worker"
_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class DrawnRun:
    """What came back.

    Attributes:
        inputs: sizes of the inputs, by name.
        outputs: output name to array ``[runs, *output shape]``.
        executed: weighted layers with their executed precision, as the runtime tells.
    """

    inputs: Mapping[str, list[int]]
    outputs: Mapping[str, np.ndarray]
    executed: tuple[ExecutedLayer, ...]


def run_on_drawn_inputs(request: TimingRequest, runs: int) -> DrawnRun:
    """Run an artifact in a process of its own: standard-normal floats, integers zero.

    Args:
        request: the artifact; its seconds have no meaning here.
        runs: how often, each time with other numbers.

    Raises:
        EdgekitError: it cannot be run here, or its process crashed.
    """
    absolute = replace(request, model=request.model.resolve())
    with tempfile.TemporaryDirectory(prefix="edgekit-") as name:
        folder = Path(name)
        asked = {**absolute.to_dict(), "runs": runs}
        data = ask_worker(_WORKER_MODULE, asked, folder, _TIMEOUT_S)
        with np.load(folder / OUTPUTS_NAME, allow_pickle=False) as archive:
            outputs = {name: archive[f"arr_{i}"] for i, name in enumerate(data["outputs"])}
    executed = tuple(ExecutedLayer(**layer) for layer in data["executed"])
    return DrawnRun(data["inputs"], outputs, executed)
