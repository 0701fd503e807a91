"""Losses on the statistics of BatchNorm inputs: of the whole batch, and of each class.

``L_BNS``, ``L_SFDA`` and ``L_ICV`` of ClusterQ (Gao et al., arXiv 2205.00179, equations 4, 6 and
8), on mean and biased variance, averaged over channels, then layers, then classes. The channels of
all layers stand side by side in one vector, so that a loss is a few operations whatever the depth.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ._teacher import Moments, NormLayer

_FLOOR = 1e-3  # smallest stored variance, relative to its layer's mean, that is divided by


class Scale(str, enum.Enum):
    """Unit of an error: the network's own (the paper), or each channel's stored deviation."""

    ABSOLUTE = "absolute"
    RELATIVE = "relative"


class Variation(str, enum.Enum):
    """How the intra-class loss lets a class vary around its centroid.

    Attributes:
        ABSOLUTE: a Gaussian target with deviations ``lambda`` in the network's own units (paper).
        RELATIVE: the same, with ``lambda`` as a fraction of the centroid's deviation and variance.
        HINGE: no penalty within ``lambda`` (relative) of the centroid, and no noise.
    """

    ABSOLUTE = "absolute"
    RELATIVE = "relative"
    HINGE = "hinge"


@dataclass(frozen=True)
class Spread:
    """Mean and biased variance by channel: ``[D]`` of a batch, ``[K, D]`` of K classes."""

    mean: Tensor
    variance: Tensor


@dataclass(frozen=True)
class ClassSpread:
    """Statistics of the classes in a batch; rows of classes that are not ``present`` are void."""

    spread: Spread
    present: Tensor


@dataclass(frozen=True)
class Distance:
    """Squared distance between statistics, summed over channels by weights that average it.

    Attributes:
        mean_weight: weight of each channel's squared error of the mean, ``[D]``.
        spread_weight: the same for the variance, or for the deviation where ``deviation`` is set.
    """

    mean_weight: Tensor
    spread_weight: Tensor
    deviation: bool

    @classmethod
    def over(cls, norms: Sequence[NormLayer], scale: Scale) -> Distance:
        """Build the distance for the channels of ``norms`` side by side."""
        average = torch.cat(
            [torch.full_like(n.mean, 1 / (n.mean.numel() * len(norms))) for n in norms]
        )
        if scale is Scale.ABSOLUTE:
            return cls(average, average, deviation=False)
        floored = [n.variance.clamp_min(float(_FLOOR * n.variance.mean()) + 1e-12) for n in norms]
        weight = average / torch.cat(floored)
        return cls(weight, weight, deviation=True)

    def __call__(self, found: Spread, target: Spread) -> Tensor:
        """Return the distance over the last axis: a scalar, or ``[K]``."""
        return self._total(found.mean - target.mean, self._spread_error(found, target))

    def hinged(self, found: Spread, target: Spread, mean_slack: Tensor, slack: Tensor) -> Tensor:
        """Return the distance by which ``found`` leaves the tube around ``target``."""
        mean = (found.mean - target.mean).abs() - mean_slack
        wide = (self._measure(target.variance + slack) - self._measure(target.variance)).abs()
        spread = self._spread_error(found, target).abs() - wide
        return self._total(mean.clamp_min(0), spread.clamp_min(0))

    def _total(self, mean: Tensor, spread: Tensor) -> Tensor:
        return mean.square() @ self.mean_weight + spread.square() @ self.spread_weight

    def _spread_error(self, found: Spread, target: Spread) -> Tensor:
        return self._measure(found.variance) - self._measure(target.variance)

    def _measure(self, variance: Tensor) -> Tensor:
        # the gradient of the root has no bound at zero, where a constant channel sits
        return (variance.clamp_min(0) + 1e-8).sqrt() if self.deviation else variance


def stored_spread(norms: Sequence[NormLayer]) -> Spread:
    """Return the stored statistics of ``norms`` side by side, ``[D]``."""
    return Spread(torch.cat([n.mean for n in norms]), torch.cat([n.variance for n in norms]))


def batch_spread(moments: Sequence[Moments]) -> Spread:
    """Return the statistics of a whole batch over samples and positions, ``[D]``."""
    pooled = [part.pooled() for part in moments]
    return Spread(torch.cat([mean for mean, _ in pooled]), torch.cat([v for _, v in pooled]))


def class_spread(
    moments: Sequence[Moments], slots: Tensor, count: int, weight: Tensor
) -> ClassSpread:
    """Return the statistics of each class in a batch.

    Args:
        moments: of the layers wanted, ``[N, C_l]`` each.
        slots: which class each sample belongs to, ``[N]`` int64 below ``count``.
        count: number of classes ``K``.
        weight: weight of each sample, ``[N]``; samples of weight 0 do not count.
    """
    first = torch.cat([part.first for part in moments], 1)
    second = torch.cat([part.second for part in moments], 1)
    members = first.new_zeros(count, len(slots))
    members[slots, torch.arange(len(slots), device=slots.device)] = weight.to(first.dtype)
    total = members.sum(1)
    members = members / total.clamp_min(1e-12)[:, None]
    mean = members @ first
    return ClassSpread(Spread(mean, members @ second - mean.square()), total > 0)


def alignment_loss(
    found: ClassSpread, centroid: Spread, valid: Tensor, distance: Distance
) -> Tensor:
    """``L_SFDA``: how far each class is from its centroid, averaged over classes.

    Args:
        found: the batch's classes.
        centroid: their centroids, ``[K, D]``; no gradient.
        valid: which of them have a centroid, ``[K]``.
        distance: measure over the channels.
    """
    return _class_mean(distance(found.spread, centroid), found.present & valid)


def variation_loss(
    found: ClassSpread,
    centroid: Spread,
    valid: Tensor,
    distance: Distance,
    *,
    variation: Variation,
    mean_lambda: float,
    variance_lambda: float,
    generator: torch.Generator,
) -> Tensor:
    """``L_ICV``: as :func:`alignment_loss`, but to targets that leave a class room to vary."""
    slack = Spread(
        torch.full_like(centroid.mean, mean_lambda),
        torch.full_like(centroid.variance, variance_lambda),
    )
    if variation is not Variation.ABSOLUTE:
        variance = centroid.variance.clamp_min(0)
        slack = Spread(slack.mean * variance.sqrt(), slack.variance * variance)
    if variation is Variation.HINGE:
        each = distance.hinged(found.spread, centroid, slack.mean, slack.variance)
    else:
        target = Spread(
            centroid.mean + slack.mean * _normal_like(centroid.mean, generator),
            centroid.variance + slack.variance * _normal_like(centroid.mean, generator),
        )
        each = distance(found.spread, target)
    return _class_mean(each, found.present & valid)


def _normal_like(value: Tensor, generator: torch.Generator) -> Tensor:
    """Draw on the CPU, so that a run on another device sees the same numbers."""
    return torch.randn(value.shape, generator=generator).to(value)


def _class_mean(each: Tensor, used: Tensor) -> Tensor:
    """Average over the classes used; void rows must not even reach the sum, they may be NaN."""
    return torch.where(used, each, 0.0).sum() / used.sum().clamp_min(1)
