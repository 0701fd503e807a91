"""What counts as a class: the network's own logits, or clusters of its deep features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from edgekit.types import Task

from ._kmeans import kmeans, squared_distances
from ._teacher import Moments, NormLayer, TeacherPass


class Classes(Protocol):
    """Scores each sample of a pass against every class."""

    kind: str

    @property
    def count(self) -> int:
        """Number of classes."""
        ...

    @property
    def ready(self) -> bool:
        """Whether the classes are known yet."""
        ...

    def fit(self, moments: Sequence[Moments], generator: torch.Generator) -> None:
        """Find the classes, where they must be found, in what the norms saw of many samples."""
        ...

    def logits(self, seen: TeacherPass) -> Tensor:
        """Return ``[N, count]``, differentiable."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint keeps."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`state` returned."""
        ...


class LogitClasses:
    """The classes of a classifier, from its first output ``[N, K]``.

    A single logit separates two classes by its sign.
    """

    kind = "logits"
    ready = True

    def __init__(self, width: int) -> None:
        self.count = max(width, 2)

    def fit(self, moments: Sequence[Moments], generator: torch.Generator) -> None:
        """There is nothing to find."""

    def logits(self, seen: TeacherPass) -> Tensor:
        """Return the logits."""
        value = seen.outputs[0]
        return torch.cat([torch.zeros_like(value), value], 1) if value.shape[1] == 1 else value

    def state(self) -> dict[str, Tensor]:
        """Return nothing."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over nothing."""


class ClusterClasses:
    """Clusters of deep features, for networks without class logits.

    The feature of a sample is the mean over positions of the deepest BatchNorm's input, in units
    of the stored statistics. The score of a class is the negative squared distance to its centre,
    divided by the mean squared distance of a sample to its own centre.

    Args:
        wanted: number of clusters; there are fewer where features coincide.
        norms: the network's BatchNorms.
        layer: index of the one that the features come from.
    """

    kind = "clusters"

    def __init__(self, wanted: int, norms: tuple[NormLayer, ...], layer: int) -> None:
        self._wanted = wanted
        self._layer = layer
        stored = norms[layer]
        self._mean = stored.mean
        self._inverse = (stored.variance + 1e-3 * stored.variance.mean() + 1e-12).rsqrt()
        self._centres: Tensor | None = None
        self._temperature: Tensor | None = None

    @property
    def count(self) -> int:
        """Clusters found, or wanted before :meth:`fit`."""
        return self._wanted if self._centres is None else len(self._centres)

    @property
    def ready(self) -> bool:
        """Whether :meth:`fit` has run."""
        return self._centres is not None

    def fit(self, moments: Sequence[Moments], generator: torch.Generator) -> None:
        """Cluster the features of at least a few samples for each cluster."""
        features = self._features(moments).detach()
        centres, assigned = kmeans(features.cpu(), self._wanted, generator)
        self._centres = centres.to(features)
        own = self._centres[assigned.to(features.device)]
        within = (features - own).square().sum(1).mean()
        # samples that coincide with their centre leave no temperature: any small one separates
        self._temperature = within.clamp_min(1e-6)

    def logits(self, seen: TeacherPass) -> Tensor:
        """Return the scores."""
        assert self._centres is not None and self._temperature is not None
        return -squared_distances(self._features(seen.moments), self._centres) / self._temperature

    def state(self) -> dict[str, Tensor]:
        """Return centres and temperature, once they are known."""
        if self._centres is None or self._temperature is None:
            return {}
        return {"centres": self._centres, "temperature": self._temperature}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over centres and temperature."""
        if state:
            self._centres = state["centres"].to(self._mean)
            self._temperature = state["temperature"].to(self._mean)

    def _features(self, moments: Sequence[Moments]) -> Tensor:
        return (moments[self._layer].first - self._mean) * self._inverse


def has_logits(task: Task, first_output: Tensor, samples: int) -> bool:
    """Whether the first output of a network scores classes, one row for each sample."""
    shape = first_output.shape
    return task is Task.CLASSIFICATION and len(shape) == 2 and shape[0] == samples
