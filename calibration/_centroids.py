"""Centroids: the running statistics of each class in the deep layers (ClusterQ, equation 5)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ._statistics_losses import ClassSpread, Spread


class Centroids:
    """Mean and variance of each class by channel, ``[classes, D]`` float32.

    Args:
        classes: number of classes.
        channels: channels of all deep layers side by side.
        device: where they live.
    """

    def __init__(self, classes: int, channels: int, device: torch.device) -> None:
        self._mean = torch.zeros(classes, channels, device=device)
        self._variance = torch.zeros(classes, channels, device=device)
        self._seen = torch.zeros(classes, dtype=torch.bool, device=device)

    def of(self, classes: Tensor) -> tuple[Spread, Tensor]:
        """Return the centroids of ``classes`` ``[K]``, and which of them exist."""
        return Spread(self._mean[classes], self._variance[classes]), self._seen[classes]

    def update(self, classes: Tensor, found: ClassSpread, beta: float) -> None:
        """Move the centroids of the classes present by ``beta``; a first sight sets the row.

        Args:
            classes: class of each row of ``found``, ``[K]``, each at most once.
            found: the batch's classes.
            beta: share of the new value; 0 leaves a centroid where it was set.
        """
        rows = classes[found.present]
        share = torch.where(self._seen[rows], beta, 1.0)[:, None]
        for kept, new in (
            (self._mean, found.spread.mean),
            (self._variance, found.spread.variance),
        ):
            kept[rows] = torch.lerp(kept[rows], new.detach()[found.present], share)
        self._seen[rows] = True

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint keeps."""
        return {"mean": self._mean, "variance": self._variance, "seen": self._seen}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`state` returned."""
        for name, value in self.state().items():
            value.copy_(state[name])
