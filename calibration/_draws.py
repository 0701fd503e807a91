"""Every random draw of a training, from the step's number alone.

No random state has to be kept: a run that is resumed draws what it would have drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TRAIN, HELD_OUT, CENTROIDS, CLUSTERS, SAMPLES, DECK = range(6)
"""Purposes, whose draws are independent of one another."""


def stream(seed: int, purpose: int, index: int) -> torch.Generator:
    """Return the CPU generator of one purpose and step."""
    mixed = seed * 0x9E3779B1 + purpose * 0x85EBCA6B + index * 0xC2B2AE35
    return torch.Generator().manual_seed(mixed & 0xFFFFFFFF)  # all that the engine's state takes


@dataclass(frozen=True)
class ClassBatch:
    """A batch of few classes with several samples each.

    Attributes:
        labels: class of each sample, ``[N]``.
        classes: the distinct classes, ``[K]``.
        slots: index into ``classes`` of each sample, ``[N]``.
    """

    labels: Tensor
    classes: Tensor
    slots: Tensor

    def to(self, device: torch.device) -> ClassBatch:
        """Return the batch on another device."""
        return ClassBatch(self.labels.to(device), self.classes.to(device), self.slots.to(device))


def class_batch(seed: int, classes: int, per_batch: int, size: int, index: int) -> ClassBatch:
    """Return batch number ``index``: consecutive batches visit all classes equally often.

    Args:
        seed: seed of the run.
        classes: number of classes there are.
        per_batch: distinct classes in one batch, at most.
        size: samples in the batch.
        index: number of the batch, from 0.
    """
    visited = min(per_batch, classes, size)
    start = index * visited
    wanted = torch.arange(start, start + visited)
    decks = {int(d): _deck(seed, classes, int(d)) for d in (wanted // classes).unique()}
    drawn = torch.stack([decks[int(place) // classes][place % classes] for place in wanted])
    labels = drawn.repeat(-(-size // visited))[:size]  # taking turns, so any cut is balanced
    distinct, slots = labels.unique(return_inverse=True)  # two decks may meet in one batch
    return ClassBatch(labels, distinct, slots)


def _deck(seed: int, classes: int, number: int) -> Tensor:
    """All classes in a random order."""
    return torch.randperm(classes, generator=stream(seed, DECK, number))
