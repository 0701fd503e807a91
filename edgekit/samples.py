"""Which part of a network's outputs belongs to which sample.

Not every output has the batch on axis 0: a recurrent network may return ``[T, N, F]``, a detector
a table of anchors that depends on no input. What batches computed is compared sample by sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from edgekit.capture import CapturedModel, example_inputs


@dataclass(frozen=True, slots=True)
class SampleAxis:
    """Where one output holds its samples.

    Attributes:
        shape: the output's shape for a single sample.
        axis: the axis that grows with the batch, ``None`` if none does.
    """

    shape: tuple[int, ...]
    axis: int | None

    def split(self, value: np.ndarray, samples: int) -> np.ndarray:
        """Return ``[samples, ...]`` of what a batch of ``samples`` computed."""
        if self.axis is None:
            return np.broadcast_to(value, (samples, *value.shape))
        before, after = value.shape[: self.axis], value.shape[self.axis + 1 :]
        rows = value.shape[self.axis] // samples
        parts = np.moveaxis(value.reshape(*before, samples, rows, *after), self.axis, 0)
        return self.squeeze(parts)

    def squeeze(self, parts: np.ndarray) -> np.ndarray:
        """Drop the batch axis of single samples ``[samples, *shape]`` where it has size 1."""
        if self.axis is None or parts.shape[self.axis + 1] != 1:
            return parts
        return parts.squeeze(self.axis + 1)


def sample_axes(model: CapturedModel) -> tuple[SampleAxis, ...]:
    """Find the batch axis of every output by running one sample and two."""
    sizes = (1, 2) if model.batch else (1,)
    shapes = [
        [tuple(value.shape) for value in model(*example_inputs(model.inputs, size))]
        for size in sizes
    ]
    return tuple(
        SampleAxis(one, _growing(one, two)) for one, two in zip(shapes[0], shapes[-1], strict=True)
    )


def _growing(one: tuple[int, ...], two: tuple[int, ...]) -> int | None:
    return next((axis for axis, size in enumerate(one) if two[axis] == 2 * size != size), None)


def together(model: CapturedModel, axes: Sequence[SampleAxis], most: int) -> int:
    """Return how many samples run in one batch: one where an input or output has no batch axis."""
    free = model.batch and all(spec.dynamic_batch for spec in model.inputs)
    return most if free and all(found.axis is not None for found in axes) else 1


def stack_inputs(
    model: CapturedModel, batches: Sequence[tuple[torch.Tensor, ...]]
) -> dict[str, np.ndarray]:
    """Return the inputs of all batches as ``[samples, *input shape]``, by name."""
    found = {}
    for spec, parts in zip(model.inputs, zip(*batches, strict=True), strict=True):
        joined = torch.cat(list(parts))
        rows = spec.shape[0]
        found[spec.name] = joined.reshape(-1, rows, *joined.shape[1:]).numpy()
    return found


def batch_of(feeds: Mapping[str, np.ndarray], start: int, size: int) -> list[torch.Tensor]:
    """Return one batch of the inputs that :func:`stack_inputs` stacked."""
    return [
        torch.from_numpy(array[start : start + size].reshape(-1, *array.shape[2:]))
        for array in feeds.values()
    ]
