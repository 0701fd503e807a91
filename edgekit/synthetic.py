"""A set of synthesized network inputs, in memory and as a portable ``.npz`` file.

The file holds one array for each network input under the input's name, ``labels`` (where the
engine aimed at classes) and ``manifest``, a JSON text. It opens without pickling, so any tool that
reads NumPy arrays can calibrate with it.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from edgekit.errors import CalibrationError, LoadError, OutputError
from edgekit.types import InputSpec

SCHEMA_VERSION = 1
_RESERVED = ("labels", "manifest", "file", "allow_pickle")  # the last two are NumPy's own
_READER_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    LookupError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)


class InputStream(Protocol):
    """Inputs without end, of the kind that a set holds a few of; a batch follows from its past."""

    def held_out(self, count: int) -> tuple[Tensor, ...]:
        """Return inputs that :meth:`next` does not yield, ``count`` at least."""
        ...

    def next(self) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Return the next inputs, and their classes ``[N]`` where they were made for any."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        ...


@dataclass(frozen=True)
class SyntheticSet:
    """Inputs of a network that no one recorded.

    Attributes:
        inputs: one tensor for each network input, in order, samples along axis 0, as the network
            takes them (already preprocessed).
        labels: class that each sample was made for, ``[N]`` int64, or ``None``.
        engine: name of the engine that made them.
        facts: what the engine reports of its work; plain JSON values.
        notes: the same in sentences, for a report.
        stream: more of them, where the engine can make more; no part of the file.
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor | None
    engine: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    stream: InputStream | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return int(self.inputs[0].shape[0])

    def batches(self, size: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield the inputs ``size`` samples at a time."""
        for start in range(0, len(self), size):
            yield tuple(value[start : start + size] for value in self.inputs)


def save_synthetic(
    made: SyntheticSet, specs: Sequence[InputSpec], path: Path, extra: Mapping[str, Any]
) -> None:
    """Write the set to ``path``, whole or not at all.

    Args:
        made: the set.
        specs: the network's inputs, which name the arrays.
        path: file to write; an existing one is replaced.
        extra: further facts for the manifest, such as the model's hash.

    Raises:
        OutputError: the file cannot be written.
    """
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "engine": made.engine,
        "samples": len(made),
        "inputs": [spec.to_dict() for spec in specs],
        **extra,
        "facts": dict(made.facts),
    }
    arrays: dict[str, Any] = {
        array_name(spec.name): value.numpy() for spec, value in zip(specs, made.inputs, strict=True)
    }
    arrays["manifest"] = np.array(json.dumps(manifest))
    if made.labels is not None:
        arrays["labels"] = made.labels.numpy()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    beside = path.with_name(f".{path.name}.partial")
    try:
        beside.write_bytes(buffer.getbuffer())
        beside.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"the file '{path}' cannot be written: {reason}") from error
    finally:
        beside.unlink(missing_ok=True)


def load_synthetic(path: Path, specs: Sequence[InputSpec]) -> SyntheticSet:
    """Read a set and check it against the network's inputs.

    A file without ``manifest`` is taken as it is, so arrays from elsewhere can be used as well.

    Raises:
        LoadError: not an ``.npz`` file, or it needs pickling.
        CalibrationError: an array is missing or does not fit the network's input.
    """
    arrays = _read(path)
    manifest = _manifest(arrays, path)
    inputs = tuple(_fitting(arrays, spec, path) for spec in specs)
    if len({len(value) for value in inputs}) != 1 or not len(inputs[0]):
        raise CalibrationError(
            f"'{path}': the inputs hold {[len(value) for value in inputs]} samples",
            "each input needs the same number of samples, and at least one",
        )
    labels = _labels(arrays, len(inputs[0]), path) if manifest else None
    engine = str(manifest.get("engine", "file"))
    note = (
        f"inputs of '{path.name}', made by {engine}"
        if manifest
        else (f"inputs of '{path.name}', of unknown origin")
    )
    return SyntheticSet(inputs, labels, engine, dict(manifest.get("facts", {})), (note,))


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        with archive:
            members: dict[str, object] = {name: archive[name] for name in archive.files}
    except _READER_ERRORS as error:
        raise LoadError(
            f"'{path}' is not a set of arrays that opens without pickling: {error}",
            "write it with 'edgekit synthesize' or numpy.savez",
        ) from error
    return {name: value for name, value in members.items() if isinstance(value, np.ndarray)}


def _manifest(arrays: Mapping[str, np.ndarray], path: Path) -> dict[str, Any]:
    """Return the manifest, empty where the file is from elsewhere."""
    if "manifest" not in arrays:
        return {}
    try:
        manifest = json.loads(str(arrays["manifest"]))
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("facts", {}), dict):
        raise CalibrationError(f"'{path}': array 'manifest' is not what 'edgekit synthesize' wrote")
    version = manifest.get("schema_version")
    if version != SCHEMA_VERSION:
        raise CalibrationError(
            f"'{path}' is a set of version {version}, this edgekit reads {SCHEMA_VERSION}",
            "synthesize it again",
        )
    return manifest


def _labels(arrays: Mapping[str, np.ndarray], samples: int, path: Path) -> Tensor | None:
    labels = arrays.get("labels")
    if labels is None:
        return None
    if labels.shape != (samples,) or labels.dtype != np.int64:
        raise CalibrationError(
            f"'{path}': array 'labels' is {labels.dtype}{list(labels.shape)}, "
            f"expected int64[{samples}]"
        )
    return torch.from_numpy(labels)


def array_name(name: str) -> str:
    """Return the name under which the file holds a network input."""
    return f"input_{name}" if name in _RESERVED else name


def _fitting(arrays: Mapping[str, np.ndarray], spec: InputSpec, path: Path) -> Tensor:
    value = arrays.get(array_name(spec.name))
    if value is None:
        raise CalibrationError(
            f"'{path}' has no array '{array_name(spec.name)}' (it has {', '.join(sorted(arrays))})",
            "name each array after the network's input",
        )
    fixed = [axis for axis in range(1, len(spec.shape)) if axis not in spec.variable_axes]
    fits = value.ndim == len(spec.shape) and all(
        value.shape[axis] == spec.shape[axis] for axis in fixed
    )
    fits = fits and all(value.shape[axis] % spec.multiple == 0 for axis in spec.variable_axes)
    if not fits or str(value.dtype) != spec.dtype:
        raise CalibrationError(
            f"'{path}': array '{array_name(spec.name)}' is {value.dtype}{list(value.shape)}, "
            f"the network takes {spec.dtype}{['N', *spec.shape[1:]]}",
            "synthesize the set for this network",
        )
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise CalibrationError(f"'{path}': array '{array_name(spec.name)}' holds NaN or infinity")
    return torch.from_numpy(value)
