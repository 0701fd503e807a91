"""Samples of a bundle: drawn inputs, and what the simulation of each target's file makes of them.

The simulation is the file itself in ONNX Runtime with Q/DQ as float arithmetic. No torch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgekit.device.bundle import INPUTS, expected_path
from edgekit.device.commands import write_arrays
from edgekit.errors import VerificationError
from edgekit.manifest import Manifest, TargetEntry
from edgekit.runners.child import WorkerRequest, run_in_child
from edgekit.types import InputSpec, Preprocessing, Task

CANDIDATES = 24
KEPT = 8
PIXEL_SPREAD = 0.27  # standard deviation of natural image pixels, as a fraction of their range
_TIMEOUT_S = 600.0
Arrays = dict[str, np.ndarray]


def write_samples(
    result: Path, manifest: Manifest, entries: Sequence[TargetEntry], folder: Path, seed: int
) -> tuple[str, ...]:
    """Write samples of a result below ``folder`` and return their paths, relative to it.

    Of a classifier those inputs are kept whose class is the clearest: where two classes are nearly
    alike the last bit of a sum decides, and a device may rightly decide otherwise.

    Args:
        result: the result directory.
        manifest: its manifest.
        entries: the targets that the bundle holds.
        folder: the bundle.
        seed: of the inputs.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
        VerificationError: a file cannot be simulated.
    """
    feeds = draw_feeds(manifest, CANDIDATES, np.random.default_rng(seed))
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        inputs = Path(scratch) / "inputs.npz"
        write_arrays(inputs, feeds)
        outputs = {entry.name: _simulate(result, entry, inputs) for entry in entries}
    kept = _clearest(manifest, outputs[entries[0].name])
    (folder / INPUTS).parent.mkdir()
    write_arrays(folder / INPUTS, {name: feed[kept] for name, feed in feeds.items()})
    for name, values in outputs.items():
        expected = {output: value[kept] for output, value in values.items()}
        write_arrays(folder / expected_path(name), expected)
    return (INPUTS, *map(expected_path, outputs))


def draw_feeds(manifest: Manifest, samples: int, generator: np.random.Generator) -> Arrays:
    """Return arrays ``[samples, *input shape]`` for every input, images in their domain."""
    return {
        spec.name: np.stack(
            [_draw(spec, manifest.preprocessing, generator) for _ in range(samples)]
        )
        for spec in manifest.inputs
    }


def _draw(
    spec: InputSpec, preprocessing: Preprocessing | None, generator: np.random.Generator
) -> np.ndarray:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "b" or (dtype.kind in "iu" and dtype != np.uint8):
        return generator.integers(2, size=spec.shape).astype(dtype)  # any table of ids has two rows
    values = _noise(spec.shape, generator)
    domain = (0.0, 255.0) if dtype == np.uint8 else _domain(spec, preprocessing)
    if domain is not None:
        low, high = domain
        values = np.clip((low + high) / 2 + values * PIXEL_SPREAD * (high - low), low, high)
    return values.astype(dtype)


def _noise(shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Return noise of unit spread; for images ``[N, C, H, W]`` with a spectrum that falls.

    It is drawn at every octave down to one value for each channel, a colour, and summed with
    weights that grow with the size of its squares, as the parts of natural images do.
    """
    if len(shape) != 4:
        return generator.standard_normal(shape)
    count, channels, height, width = shape
    total, side = np.zeros(shape), 1
    while True:
        rows, columns = -(-height // side), -(-width // side)
        squares = generator.standard_normal((count, channels, rows, columns))
        large = squares.repeat(side, axis=2).repeat(side, axis=3)
        total += large[:, :, :height, :width] * side**0.5
        if rows == columns == 1:
            break
        side *= 2
    return total / max(float(total.std()), 1e-6)


def _domain(spec: InputSpec, preprocessing: Preprocessing | None) -> tuple[float, float] | None:
    """Return the smallest and the largest value that preprocessing makes, if it is known."""
    if preprocessing is None or len(spec.shape) != 4:
        return None
    mean, std = np.broadcast_arrays(preprocessing.mean, preprocessing.std)
    top = 1.0 if preprocessing.range == 1 else 255.0
    return float(((0.0 - mean) / std).min()), float(((top - mean) / std).max())


def _simulate(result: Path, entry: TargetEntry, inputs: Path) -> Mapping[str, np.ndarray]:
    request = WorkerRequest(
        entry.name, result / entry.model, inputs, threads=1, simulate=True, stacked=True
    )
    answer = run_in_child(request, _TIMEOUT_S)
    if answer.failure is not None:
        raise answer.failure
    for name, value in answer.outputs.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise VerificationError(
                f"target '{entry.name}': its output '{name}' is not finite on drawn inputs",
                "quantize the model again, and look at what 'edgekit inspect' says of its ranges",
            )
    return answer.outputs


def _clearest(manifest: Manifest, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the indices ``[KEPT]`` of the samples to keep, in order."""
    first = outputs[manifest.outputs[0].name]
    logits = first.reshape(len(first), -1)
    if manifest.task is not Task.CLASSIFICATION or first.ndim != 3 or first.shape[1] != 1:
        return np.arange(KEPT)
    if logits.shape[1] == 1:  # a lone logit decides by its sign
        margin = np.abs(logits[:, 0])
    else:
        best = np.partition(logits.astype(np.float64), -2, axis=1)
        margin = best[:, -1] - best[:, -2]
    kept: np.ndarray = np.sort(np.argsort(-margin, kind="stable")[:KEPT])
    return kept
