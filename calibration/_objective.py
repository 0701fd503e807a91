"""What the generator minimises: the losses of one batch, and the centroids that they refer to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ._centroids import Centroids
from ._class_network import ClassNetwork
from ._clusterq_options import Losses
from ._draws import ClassBatch
from ._image_source import Look
from ._statistics_losses import (
    ClassSpread,
    Distance,
    alignment_loss,
    batch_spread,
    class_spread,
    stored_spread,
    variation_loss,
)
from ._teacher import Moments, TeacherPass


@dataclass(frozen=True)
class Terms:
    """The losses of one batch by name, and its class statistics where they were needed."""

    values: Mapping[str, Tensor]
    found: ClassSpread | None


class Objective:
    """The losses with their weights.

    Args:
        network: the frozen network.
        losses: the weights.
    """

    def __init__(self, network: ClassNetwork, losses: Losses) -> None:
        norms = network.teacher.norms
        self._device = network.device
        self._losses = losses
        self._stored = stored_spread(norms)
        self._distance = Distance.over(norms, losses.scale)
        self._deep = network.deep(losses.first_deep) if losses.semantic else ()
        deep = [norms[index] for index in self._deep]
        self._deep_distance = Distance.over(deep, losses.scale) if deep else None
        self.centroids: Centroids | None = None

    def terms(
        self, seen: TeacherPass, logits: Tensor | None, batch: ClassBatch, draws: torch.Generator
    ) -> Terms:
        """Return the losses of a batch that apply so far."""
        values: dict[str, Tensor] = {}
        found = None
        if self._losses.bns > 0:
            values["bns"] = self._distance(batch_spread(seen.moments), self._stored)
        if logits is not None and self._losses.ce > 0:
            values["ce"] = F.cross_entropy(logits, batch.labels)
        if logits is not None and self.centroids is not None:
            found = self._class_spread(seen.moments, logits, batch)
            values.update(self._class_terms(found, self.centroids, batch, draws))
        return Terms(values, found)

    def total(self, terms: Terms) -> Tensor:
        """Return the weighted sum."""
        weighted = [getattr(self._losses, name) * value for name, value in terms.values.items()]
        return torch.stack(weighted).sum()

    def follow(self, terms: Terms, batch: ClassBatch) -> None:
        """Move the centroids towards what the step saw."""
        if self.centroids is not None and terms.found is not None:
            self.centroids.update(batch.classes, terms.found, self._losses.beta)

    def empty_centroids(self, classes: int) -> None:
        """Begin with class statistics, if they are wanted; a class's first sight sets its row."""
        if self._deep_distance is not None:
            channels = len(self._deep_distance.mean_weight)
            self.centroids = Centroids(classes, channels, self._device)

    def set_centroids(self, look: Look) -> None:
        """Set the centroids from images of their own."""
        if self.centroids is not None and look.logits is not None:
            found = self._class_spread(look.moments, look.logits, look.batch)
            self.centroids.update(look.batch.classes, found, self._losses.beta)

    def held_out(self, look: Look) -> dict[str, float]:
        """Return the losses and the teacher's accuracy on held-out images."""
        row = {"held_out_bns": float(self._distance(batch_spread(look.moments), self._stored))}
        if look.logits is not None:
            labels = look.batch.labels
            row["held_out_ce"] = float(F.cross_entropy(look.logits, labels))
            row["held_out_accuracy"] = float((look.logits.argmax(1) == labels).float().mean())
        return row

    def score(self, row: Mapping[str, float]) -> float:
        """Return the sum of what is minimised, each at full weight, from :meth:`held_out`."""
        parts = [("held_out_bns", self._losses.bns), ("held_out_ce", self._losses.ce)]
        return sum(row.get(name, 0.0) for name, weight in parts if weight > 0)

    def _class_terms(
        self, found: ClassSpread, centroids: Centroids, batch: ClassBatch, draws: torch.Generator
    ) -> dict[str, Tensor]:
        losses, distance = self._losses, self._deep_distance
        assert distance is not None
        centroid, valid = centroids.of(batch.classes)
        terms = {}
        if losses.sfda > 0:
            terms["sfda"] = alignment_loss(found, centroid, valid, distance)
        if losses.icv > 0:
            terms["icv"] = variation_loss(
                found,
                centroid,
                valid,
                distance,
                variation=losses.variation,
                mean_lambda=losses.mean_lambda,
                variance_lambda=losses.variance_lambda,
                generator=draws,
            )
        return terms

    def _class_spread(
        self, moments: tuple[Moments, ...], logits: Tensor, batch: ClassBatch
    ) -> ClassSpread:
        """Return the statistics of each class over the samples that the teacher agrees on."""
        correct = logits.detach().argmax(1) == batch.labels
        deep = [moments[index] for index in self._deep]
        return class_spread(deep, batch.slots, len(batch.classes), correct)
