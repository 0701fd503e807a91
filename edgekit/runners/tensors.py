"""Named tensors at the border of an artifact: what it accepts, and feeding it batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from edgekit.errors import ConfigError
from edgekit.types import ExecutedLayer, Runner


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input of an opened artifact; ``None`` in ``shape`` is an axis of any size."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.dtype} [{sizes}]"


class ArtifactRunner(Runner, Protocol):
    """A :class:`~edgekit.types.Runner` that also says what it accepts and what it runs on.

    ``suffixes`` are those of the files that it opens on their own.
    """

    suffixes: ClassVar[tuple[str, ...]]

    @staticmethod
    def describe() -> dict[str, Any]:
        """Import the runtime and return its ``versions``, and the ``devices`` that it sees.

        ``devices`` is ``None`` for a runtime of NVIDIA GPUs, which the driver lists.

        Raises:
            MissingDependencyError: it is not installed.
        """
        ...

    def __enter__(self) -> ArtifactRunner: ...

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The artifact's inputs; readable while it is open."""
        ...

    @property
    def versions(self) -> dict[str, str]:
        """Package name to version of the runtime; readable while it is open."""
        ...

    def executed_layers(self) -> list[ExecutedLayer]:
        """Weighted layers with their executed precision."""
        ...

    def bind(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """Check the feeds and return a call that runs once on them, without more checks.

        It is what a bare loop around the runtime would call. Results stay in the runtime's hands:
        the next call may overwrite them. For a GPU, copies to and from the device are included.
        """
        ...


def check_feeds(
    feeds: Mapping[str, np.ndarray], inputs: tuple[TensorInfo, ...], where: str
) -> dict[str, np.ndarray]:
    """Return the feeds as contiguous arrays, in the order of ``inputs``.

    Args:
        feeds: input name to array.
        inputs: what the artifact accepts.
        where: the artifact, for the message.

    Raises:
        ConfigError: an input is missing or unknown, or differs in type or shape.
    """
    names = [info.name for info in inputs]
    if sorted(feeds) != sorted(names):
        raise ConfigError(f"{where}: expected the inputs {sorted(names)}, got {sorted(feeds)}")
    checked: dict[str, np.ndarray] = {}
    for info in inputs:
        array = feeds[info.name]
        fits = array.ndim == len(info.shape) and all(
            size is None or size == found
            for size, found in zip(info.shape, array.shape, strict=True)
        )
        if not fits or array.dtype != info.dtype:
            raise ConfigError(
                f"{where}: input '{info.name}' expects {info}, "
                f"got {array.dtype} {list(array.shape)}"
            )
        checked[info.name] = np.ascontiguousarray(array)
    return checked


def infer_batches(
    runner: ArtifactRunner, feeds: Mapping[str, np.ndarray], batch_size: int
) -> dict[str, np.ndarray]:
    """Run samples in slices along axis 0 and join the outputs along axis 0.

    An artifact with a fixed first axis, such as an engine for batch 1, is fed slices of exactly
    that size; one with a dynamic batch, slices of ``batch_size``.

    Args:
        runner: an open artifact.
        feeds: input name to array; the arrays share axis 0.
        batch_size: samples at a time where the artifact leaves the choice.

    Raises:
        ConfigError: the samples do not divide into slices that the artifact accepts.
    """
    counts = sorted({len(array) if array.ndim else 0 for array in feeds.values()})
    if len(counts) != 1 or counts[0] == 0:
        raise ConfigError(f"inputs need one common number of samples on axis 0, got {counts}")
    count = counts[0]
    size = _slice_size(runner.inputs, count, batch_size)
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, count, size):
        piece = {name: array[start : start + size] for name, array in feeds.items()}
        for name, value in runner.infer(piece).items():
            parts.setdefault(name, []).append(value)
    return {
        name: values[0] if len(values) == 1 else np.concatenate(values)
        for name, values in parts.items()
    }


def infer_runs(runner: ArtifactRunner, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run once for each index of axis 0 and stack the outputs along a new axis 0.

    Args:
        runner: an open artifact.
        feeds: input name to array ``[runs, *input shape]``.

    Raises:
        ConfigError: the inputs differ in their number of runs, or do not fit the artifact.
    """
    counts = sorted({len(array) if array.ndim else 0 for array in feeds.values()})
    if len(counts) != 1 or counts[0] == 0:
        raise ConfigError(f"inputs need one common number of runs on axis 0, got {counts}")
    runs = [
        runner.infer({name: array[index] for name, array in feeds.items()})
        for index in range(counts[0])
    ]
    return {name: np.stack([run[name] for run in runs]) for name in runs[0]}


def _slice_size(inputs: tuple[TensorInfo, ...], count: int, batch_size: int) -> int:
    fixed = {info.shape[0] for info in inputs if info.shape} - {None}
    if not fixed:
        if batch_size < 1:
            raise ConfigError(f"batch size must be at least 1, not {batch_size}")
        return batch_size
    sizes = sorted(size for size in fixed if size is not None)
    if len(sizes) != 1 or count % sizes[0]:
        raise ConfigError(
            f"{count} samples do not divide into the fixed batch of the artifact, {sizes}"
        )
    return sizes[0]
