"""What rounding is learned on: float networks, with inputs for them batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgekit.capture import CapturedModel
from edgekit.quantized import QuantizedModel
from edgekit.reference import Reference, reference_of
from edgekit.signals import random_batches
from edgekit.synthetic import SyntheticSet

_SAMPLES = 64
"""Noise that decides a twin's factors, as many samples as forward-only calibration takes."""


@dataclass(frozen=True)
class Source:
    """A float network or its twin, and batches of inputs for it, without end."""

    reference: Reference
    batches: Iterator[tuple[Tensor, ...]]


def sources_of(
    model: QuantizedModel, reference: Reference, size: int, generator: torch.Generator
) -> list[Source]:
    """Return what a model's rounding can be learned on, to be used in turn.

    A small set of synthesized inputs is soon known by heart. Codes are the same for the network
    and its twin, so the twin, for which noise never ends, keeps them good for more than the set.

    Args:
        model: the quantized model.
        reference: what its inputs are for.
        size: samples of a batch.
        generator: source of all draws.
    """
    captured = model.sited.model
    if model.statistics.altered:
        return [Source(reference, noise_batches(captured, size, generator))]
    mirror = captured.preprocessing is not None
    own = Source(reference, set_batches(reference.inputs, size, generator, mirror=mirror))
    twin = _twin(model, generator)
    if twin is None:
        return [own]
    return [own, Source(twin, noise_batches(captured, size, generator))]


def _twin(model: QuantizedModel, generator: torch.Generator) -> Reference | None:
    """Return the network's twin, or ``None`` where no BatchNorm says what it is."""
    noise = next(random_batches(model.sited.model, _SAMPLES, _SAMPLES, generator))
    made = SyntheticSet(noise, None, "noise")
    twin = reference_of(model.sited, replace(model.statistics, inputs=made, altered=True))
    return twin if twin is not None and twin.factors else None


def noise_batches(
    model: CapturedModel, size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, ...]]:
    """Yield structured noise without end, fresh every time."""
    while True:
        yield from random_batches(model, size, size, generator)


def set_batches(
    inputs: tuple[Tensor, ...], size: int, generator: torch.Generator, *, mirror: bool
) -> Iterator[tuple[Tensor, ...]]:
    """Yield random samples of a set without end.

    Args:
        inputs: one tensor for each network input, samples along axis 0.
        size: samples of a batch.
        generator: source of the draws.
        mirror: whether half of the batches are mirrored along the last axis.
    """
    while True:
        order = torch.randperm(len(inputs[0]), generator=generator)
        for start in range(0, len(order), size):
            picked = tuple(value[order[start : start + size]] for value in inputs)
            flip = mirror and bool(torch.rand((), generator=generator) < 0.5)
            yield tuple(value.flip(-1) for value in picked) if flip else picked
