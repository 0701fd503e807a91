"""What a student learns on: mixtures of what its calibration made, without end.

A student that sees the same hundred inputs again and again knows them by heart, and of inputs that
were made for one class each its teacher is too sure. What the teacher says of shifted, mirrored and
mixed ones is as good a lesson, there are enough of these, and the places between classes are where
the student errs ("a good teacher is patient and consistent", Beyer et al., CVPR 2022, on mixtures
of real images).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from edgekit.quantized import QuantizedModel
from edgekit.synthetic import InputStream

_HELD_OUT = 4
"""One of so many samples of a set is kept for judging."""
_SHIFT = 8
"""An image is shifted by its size divided by this at most."""
_WAYS = 3
"""Batches are, by chance: left as they are, blended in pairs, or with a box of another sample."""


def stream_of(model: QuantizedModel, batch: int, seed: int) -> Mixtures:
    """Return the inputs without end that a model's student learns on.

    Args:
        model: the model, with inputs for the unaltered network.
        batch: samples of a batch, where the calibration makes no batches of its own.
        seed: of all draws.
    """
    made = model.statistics.inputs
    assert made is not None
    images = model.sited.model.preprocessing is not None
    return Mixtures(made.stream or SetStream(made.inputs, batch, seed, images=images), seed)


def _draws(seed: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 0x9E3779B1 + number) & 0xFFFFFFFF)


@dataclass
class SetStream:
    """Random samples of a set, shifted and mirrored where they are images.

    Attributes:
        inputs: one tensor for each network input, samples along axis 0.
        batch: samples of a batch.
        seed: of all draws.
        images: whether inputs of four axes are images, which may be shifted and mirrored.
        number: of the next batch.
    """

    inputs: tuple[Tensor, ...]
    batch: int
    seed: int
    images: bool
    number: int = 0

    def held_out(self, count: int) -> tuple[Tensor, ...]:
        """Return random ones of the samples that are held out, ``count`` at least."""
        batches = range(-(-count // self.batch))
        parts = [self._drawn(_draws(self.seed, -1 - index), held_out=True) for index in batches]
        return tuple(torch.cat(list(each)) for each in zip(*parts, strict=True))

    def next(self) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Return the next samples; they are of no class."""
        generator = _draws(self.seed, self.number)
        self.number += 1
        return self._drawn(generator, held_out=False), None

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"number": self.number}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.number = int(state["number"])

    def _drawn(self, generator: torch.Generator, *, held_out: bool) -> tuple[Tensor, ...]:
        count = len(self.inputs[0])
        own = torch.arange(count)
        if count > 1:  # a single one is for everything
            own = own[(own % _HELD_OUT == 0) == held_out]
        picked = own[torch.randint(0, len(own), (self.batch,), generator=generator)]
        found = []
        for value in self.inputs:
            image = self.images and value.dim() == 4
            found.append(_moved(value[picked], generator) if image else value[picked])
        return tuple(found)


@dataclass
class Mixtures:
    """A stream whose batches are mixed within themselves, but for some that stay as they are.

    Attributes:
        stream: of the inputs.
        seed: of all draws.
        number: of the next batch.
    """

    stream: InputStream
    seed: int
    number: int = 0

    def held_out(self, count: int) -> tuple[Tensor, ...]:
        """Return mixtures of inputs that are held out, a third of each way."""
        parts = [value.chunk(_WAYS) for value in self.stream.held_out(count)]
        mixed = [
            _mixed(part, way, _draws(self.seed, -1 - way))
            for way, part in enumerate(zip(*parts, strict=True))
        ]
        return tuple(torch.cat(list(each)) for each in zip(*mixed, strict=True))

    def next(self) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Return the next inputs; those that are mixed have no class."""
        generator = _draws(self.seed, self.number)
        self.number += 1
        inputs, labels = self.stream.next()
        way = int(torch.randint(0, _WAYS, (), generator=generator))
        return _mixed(inputs, way, generator), labels if way == 0 else None

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"number": self.number, "stream": self.stream.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.number = int(state["number"])
        self.stream.restore(state["stream"])


def _mixed(inputs: tuple[Tensor, ...], way: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Mix each sample with another one of its batch; whole numbers cannot be mixed."""
    if way == 0 or not all(value.is_floating_point() for value in inputs):
        return inputs
    count = len(inputs[0])
    other = torch.randperm(count, generator=generator)
    share = torch.rand(count, generator=generator)
    offsets = torch.rand(count, 2, generator=generator)
    found = []
    for value in inputs:
        if way == 1 or value.dim() != 4:
            weight = share.reshape(-1, *[1] * (value.dim() - 1))
            found.append(value * weight + value[other] * (1 - weight))
        else:
            found.append(torch.where(_boxes(value, share, offsets), value, value[other]))
    return tuple(found)


def _moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift images ``[N, C, H, W]`` by random offsets, and mirror half of them."""
    height, width = images.shape[2:]
    down, right = height // _SHIFT, width // _SHIFT
    wide = F.pad(images, (right, right, down, down), mode="replicate")
    rows = torch.randint(0, 2 * down + 1, (len(images),), generator=generator)
    columns = torch.randint(0, 2 * right + 1, (len(images),), generator=generator)
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    moved = [
        image[:, row : row + height, column : column + width]
        for image, row, column in zip(wide, rows.tolist(), columns.tolist(), strict=True)
    ]
    found = torch.stack(moved)
    return torch.where(mirrored[:, None, None, None], found.flip(-1), found)


def _boxes(images: Tensor, share: Tensor, offsets: Tensor) -> Tensor:
    """Return a box of a share of each image, ``[N, 1, H, W]``, at a place given by offsets."""
    sides = share.sqrt()[:, None]
    inside = []
    for axis, size in enumerate(images.shape[2:]):
        place = (torch.arange(size) + 0.5) / size
        begin = offsets[:, axis : axis + 1] * (1 - sides)
        inside.append((place >= begin) & (place < begin + sides))
    return inside[0][:, None, :, None] & inside[1][:, None, None, :]
