"""Step: classes that one artifact predicts, and the precision that its layers run in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._images import image_set
from benchmarks._process import answer
from benchmarks._runtimes import open_inference


def predict(request: dict[str, Any]) -> dict[str, Any]:
    """Run an artifact over the evaluation set at batch 1.

    Request: ``case``, ``data``, ``images`` (their number or null), ``runtime``, ``path``,
    ``layers`` (whether to read the executed precision back); with ``outputs``, a ``.npy`` file,
    the outputs are written there.
    """
    images = image_set(request, request["images"])
    infer = open_inference(request["runtime"], request["path"])
    outputs = np.stack([infer(images.input(index))[0] for index in range(len(images))])
    if "outputs" in request:
        np.save(request["outputs"], outputs)
    return {
        "predicted": outputs.argmax(1).tolist(),
        "labels": [images.label(index) for index in range(len(images))],
        "convolutions": _convolutions(request) if request["layers"] else None,
        "size_bytes": _size(Path(request["path"])),
    }


def _convolutions(request: dict[str, Any]) -> dict[str, int]:
    """Count executed convolutions by precision, as the runtime reports them."""
    from edgekit.runners import open_model

    counts: dict[str, int] = {}
    with open_model(request["runtime"], Path(request["path"])) as runner:
        for layer in runner.executed_layers():
            if "conv" in layer.op.lower():
                counts[layer.precision] = counts.get(layer.precision, 0) + 1
    return counts


def _size(path: Path) -> int:
    beside = [path.with_suffix(".bin")] if path.suffix == ".xml" else []
    return sum(file.stat().st_size for file in (path, *beside))


if __name__ == "__main__":
    answer(predict)
