"""Images without end from a generator that goes on learning, for a student to learn beside it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgekit.capture import CapturedModel

from ._class_network import ClassNetwork
from ._clusterq_options import Losses, Making, Schedule
from ._draws import HELD_OUT, stream
from ._generator_training import GeneratorTraining
from ._image_source import ImageSource

_FIRST_HELD_OUT = 1 << 16
"""Number of the first batch that is held out here; smaller ones chose the generator."""


@dataclass
class GeneratorStream:
    """Alternates with a student: each batch is one step of the generator, on its own losses.

    Holds the generator's parameters and no network, until the first batch is wanted.

    Attributes:
        model: the network, on whichever device it lies when the first batch is wanted.
        losses: of the generator.
        schedule: whose least rate the generator goes on at.
        making: how images are made.
        seed: seed of everything random.
        saved: the state of the generator's training (:meth:`GeneratorTraining.saved`).
    """

    model: CapturedModel
    losses: Losses
    schedule: Schedule
    making: Making
    seed: int
    saved: Mapping[str, Any]
    _training: GeneratorTraining | None = None

    def held_out(self, count: int) -> tuple[Tensor, ...]:
        """Return images of other draws than the generator learns on, ``count`` at least."""
        training = self._begun()
        source, size = training.source, training.state.batch
        parts: list[tuple[Tensor, ...]] = []
        with torch.no_grad():
            for index in range(_FIRST_HELD_OUT, _FIRST_HELD_OUT - (-count // size)):
                batch = source.batch(index, size, size)
                parts.append(source.inputs(batch, stream(self.seed, HELD_OUT, index)))
        return tuple(torch.cat(list(each)).cpu() for each in zip(*parts, strict=True))

    def next(self) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Take a step of the generator, and return its images with their classes, on the CPU.

        Classes are given where they are the network's own and the generator aimed at them.
        """
        training = self._begun()
        inputs, labels = training.further()
        known = training.source.network.classes
        aimed = known is not None and known.kind == "logits" and self.losses.ce > 0
        return tuple(value.cpu() for value in inputs), labels.cpu() if aimed else None

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return copy.deepcopy(dict(self.saved if self._training is None else self._training.saved()))

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.saved, self._training = state, None

    def _begun(self) -> GeneratorTraining:
        if self._training is None:
            source = ImageSource(
                ClassNetwork.of(self.model, self.making.clusters), self.making, self.seed
            )
            self._training = GeneratorTraining(source, self.losses, self.schedule, self.seed)
            self._training.restore(self.saved)
        return self._training
