"""The frozen network as ClusterQ sees it: any batch size, its classes, its deep layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgekit.capture import CapturedModel
from edgekit.errors import CalibrationError

from ._classes import Classes, ClusterClasses, LogitClasses, has_logits
from ._space import InputSpace
from ._teacher import Moments, Teacher, TeacherPass


@dataclass(frozen=True)
class ClassNetwork:
    """The frozen network, run on batches of any size.

    Attributes:
        space: its input domain.
        teacher: runs it.
        device: where it lies.
        chunk: samples that it takes at once, where it takes no other number.
        rows: indices of the BatchNorms that see exactly one row for each sample.
        classes: what counts as a class, ``None`` where samples cannot be told apart inside.
    """

    space: InputSpace
    teacher: Teacher
    device: torch.device
    chunk: int | None
    rows: tuple[int, ...]
    classes: Classes | None

    @classmethod
    def of(cls, model: CapturedModel, clusters: int) -> ClassNetwork:
        """Look at a network with a first small batch.

        Args:
            model: the network.
            clusters: number of classes, where it has no logits.

        Raises:
            CalibrationError: it has no BatchNorm, or inputs of which no batch can be made.
        """
        teacher, space = Teacher(model), InputSpace.of(model)
        if not teacher.norms:
            raise CalibrationError(
                "the network has no BatchNorm, so there are no stored statistics to match",
                "use --calibration renorm, or images:DIR with real images",
            )
        chunk = _fixed_batch(model)
        device = teacher.norms[0].mean.device
        count = chunk or 2
        inputs = space.drawn(1 if chunk else count, torch.Generator().manual_seed(0))
        with torch.no_grad():
            seen = teacher(*(value.to(device) for value in inputs))
        rows = tuple(i for i, m in enumerate(seen.moments) if len(m.first) == count)
        classes: Classes | None = None
        if has_logits(model.task, seen.outputs[0], count):
            classes = LogitClasses(seen.outputs[0].shape[1])
        elif rows:
            classes = ClusterClasses(clusters, teacher.norms, rows[-1])
        return cls(space, teacher, device, chunk, rows, classes)

    def whole(self, size: int) -> int:
        """Round a number of samples up to what the network takes."""
        return size if self.chunk is None else -(-size // self.chunk) * self.chunk

    def drawn(self, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw ``count`` random inputs, on the network's device."""
        if self.chunk is None:
            inputs = self.space.drawn(count, generator)
        else:
            parts = [self.space.drawn(1, generator) for _ in range(count // self.chunk)]
            inputs = tuple(torch.cat(list(values)) for values in zip(*parts, strict=True))
        return tuple(value.to(self.device) for value in inputs)

    def run(self, inputs: Sequence[Tensor], swing: torch.Generator | None = None) -> TeacherPass:
        """Run a batch, in pieces where the network takes no other size (see :class:`Teacher`)."""
        if self.chunk is None:
            return self.teacher(*inputs, swing=swing)
        pieces = zip(*(value.split(self.chunk) for value in inputs), strict=True)
        passes = [self.teacher(*piece, swing=swing) for piece in pieces]
        return TeacherPass(
            tuple(torch.cat(list(each)) for each in zip(*(p.outputs for p in passes), strict=True)),
            joined([p.moments for p in passes]),
            torch.cat([p.features for p in passes]),
        )

    def deep(self, first: int | None) -> tuple[int, ...]:
        """Return the BatchNorms with class statistics: the deeper half and a little more.

        Args:
            first: index of the first one, or ``None`` for ``floor((B + 1) / 2) - 2`` of ``B``.
        """
        count = len(self.teacher.norms)
        start = max((count + 1) // 2 - 2, 0) if first is None else first
        return tuple(index for index in self.rows if index >= start)


def joined(passes: Sequence[Sequence[Moments]]) -> tuple[Moments, ...]:
    """Return the moments of several batches as those of one."""
    return tuple(
        Moments(torch.cat([m.first for m in each]), torch.cat([m.second for m in each]))
        for each in zip(*passes, strict=True)
    )


def _fixed_batch(model: CapturedModel) -> int | None:
    """Return the only size of axis 0 that the network takes, ``None`` if it takes any.

    Raises:
        CalibrationError: the inputs have no common axis of samples.
    """
    sizes = {spec.shape[0] for spec in model.inputs}
    if len(sizes) > 1:
        shapes = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in model.inputs)
        raise CalibrationError(
            f"the inputs differ in size along axis 0 ({shapes}), so no batch can be generated",
            "use --calibration renorm",
        )
    return None if model.batch else sizes.pop()
