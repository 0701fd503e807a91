"""Generated inputs of wanted classes, and what the frozen network makes of many of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._augment import crop_and_flip
from ._class_network import ClassNetwork, joined
from ._clusterq_options import Making
from ._draws import ClassBatch, class_batch, stream
from ._generator import Generator
from ._teacher import Moments, TeacherPass


@dataclass(frozen=True)
class Look:
    """What the network made of generated inputs, without gradient.

    Attributes:
        batch: their classes.
        moments: what each BatchNorm saw.
        logits: ``[N, classes]``, where classes are known.
    """

    batch: ClassBatch
    moments: tuple[Moments, ...]
    logits: Tensor | None


class ImageSource:
    """A generator with everything that it takes to make inputs of a network.

    Args:
        network: the network.
        making: options of the generator.
        seed: seed of everything random.
    """

    def __init__(self, network: ClassNetwork, making: Making, seed: int) -> None:
        self.network = network
        self._making = making
        self._seed = seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = Generator(
                network.space.sizes(),
                self.classes,
                latent=making.latent,
                width=making.width,
                form=making.form,
            )
        self.generator = made.to(network.device)

    @property
    def classes(self) -> int:
        """Number of classes that labels are drawn from."""
        known = self.network.classes
        return self._making.clusters if known is None else known.count

    def batch(self, index: int, size: int, per_batch: int) -> ClassBatch:
        """Return the classes of batch number ``index``, on the network's device."""
        made = class_batch(self._seed, self.classes, per_batch, size, index)
        return made.to(self.network.device)

    def inputs(
        self, batch: ClassBatch, draws: torch.Generator, *, augment: bool = False
    ) -> tuple[Tensor, ...]:
        """Generate network inputs, on the network's device.

        Args:
            batch: the classes wanted.
            draws: CPU source of latents, ids and crops.
            augment: crop and mirror, by chance, as in training.
        """
        count, network = len(batch.labels), self.network
        latent = torch.randn(count, self._making.latent, generator=draws).to(network.device)
        signals = self.generator(latent, batch.labels)
        if augment and float(torch.rand((), generator=draws)) < self._making.augment:
            signals = tuple(crop_and_flip(s, draws) if s.dim() == 4 else s for s in signals)
        specs = network.space.model.inputs
        typed = [
            signal.to(getattr(torch, specs[position].dtype))
            for position, signal in zip(network.space.shaped, signals, strict=True)
        ]
        alone = len(typed) == len(specs)  # nothing else has to be drawn
        return network.space.complete(typed, typed if alone else network.drawn(count, draws))

    def look(self, purpose: int, batches: int, size: int) -> Look:
        """Run batches that visit all classes in turn; nothing is altered.

        Args:
            purpose: which stream of draws.
            batches: their number.
            size: samples in each.
        """
        made, moments, logits = [], [], []
        with torch.no_grad():
            for index in range(batches):
                batch = self.batch(index, size, size)
                inputs = self.inputs(batch, stream(self._seed, purpose, index))
                seen = self.network.run(inputs)
                made.append(batch.labels)
                moments.append(seen.moments)
                logits.append(self.logits(seen))
        labels = torch.cat(made)
        distinct, slots = labels.unique(return_inverse=True)
        scores = [part for part in logits if part is not None]
        return Look(
            ClassBatch(labels, distinct, slots),
            joined(moments),
            torch.cat(scores) if scores else None,
        )

    def logits(self, seen: TeacherPass) -> Tensor | None:
        """Return the scores of the classes, where they are known yet."""
        known = self.network.classes
        return known.logits(seen) if known is not None and known.ready else None
