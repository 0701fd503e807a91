"""Inputs and outputs as ``.npz`` files, for any network."""

from __future__ import annotations

import time
import zipfile
import zlib
from pathlib import Path

import numpy as np

from edgekit.errors import ConfigError, LoadError
from edgekit.run.artifact import OpenArtifact
from edgekit.runners.tensors import infer_batches
from edgekit.types import InputSpec

BATCH = 8
READ_ERRORS = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


def read_arrays(path: Path, expected: str) -> dict[str, np.ndarray]:
    """Read all arrays of an ``.npz`` file.

    Args:
        path: the file.
        expected: what it should hold, for the hint.

    Raises:
        LoadError: it cannot be read, or holds objects, which would run code.
    """
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            raise LoadError(f"'{path}' is not a readable .npz: it holds a single array", expected)
        with found:
            return {name: found[name] for name in found.files}
    except READ_ERRORS as error:
        raise LoadError(f"'{path}' is not a readable .npz: {error}", expected) from error


def read_inputs(path: Path, specs: tuple[InputSpec, ...]) -> dict[str, np.ndarray]:
    """Read the inputs of a network; other arrays in the file are left alone.

    An array has the name of its input, or ``input_NAME`` where ``edgekit synthesize`` or
    ``numpy.savez`` cannot use that name.

    Raises:
        LoadError: the file cannot be read.
        ConfigError: an array is missing or does not fit its input.
    """
    layout = "it holds one array for each input: " + ", ".join(_shown(spec) for spec in specs)
    arrays = read_arrays(path, layout)
    return {spec.name: _fitting(path, arrays, spec, layout) for spec in specs}


def _fitting(path: Path, arrays: dict[str, np.ndarray], spec: InputSpec, layout: str) -> np.ndarray:
    value = arrays.get(spec.name, arrays.get(f"input_{spec.name}"))
    if value is None:
        raise ConfigError(
            f"'{path}' has no array '{spec.name}' (it has {', '.join(sorted(arrays)) or 'none'})",
            layout,
        )
    free = {*spec.variable_axes, *([0] if spec.dynamic_batch else [])}
    fits = value.ndim == len(spec.shape) and all(
        value.shape[axis] == size
        if axis not in free
        else value.shape[axis] > 0 and value.shape[axis] % (spec.multiple if axis else 1) == 0
        for axis, size in enumerate(spec.shape)
    )
    if not fits or not np.can_cast(value.dtype, spec.dtype, "same_kind"):
        raise ConfigError(
            f"'{path}': array '{spec.name}' is {value.dtype} {list(value.shape)}", layout
        )
    return value.astype(spec.dtype)


def _shown(spec: InputSpec) -> str:
    sizes = [
        "N"
        if axis == 0 and spec.dynamic_batch
        else f"any multiple of {spec.multiple}"
        if axis in spec.variable_axes
        else str(size)
        for axis, size in enumerate(spec.shape)
    ]
    return f"{spec.name} {spec.dtype} [{', '.join(sizes)}]"


def run_arrays(
    artifact: OpenArtifact, feeds: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], float]:
    """Return the outputs, samples along axis 0, and the seconds that the network took.

    Networks with a batch run up to eight samples at a time, others everything at once.
    """
    manifest = artifact.manifest
    batched = all(spec.dynamic_batch for spec in manifest.inputs) and all(
        spec.shape[:1] == (1,) for spec in manifest.outputs
    )
    began = time.perf_counter()
    found = infer_batches(artifact.runner, feeds, BATCH) if batched else artifact.infer(feeds)
    return found, time.perf_counter() - began
