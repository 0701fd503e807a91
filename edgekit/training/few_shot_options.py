"""Options of the training of few-shot networks."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from edgekit.errors import ConfigError
from edgekit.few_shot import Metric

from .episodes import EpisodeShape

_DROP_AT, _DROP = 0.8, 0.1  # of each stage, as in the paper


class Pooling(str, enum.Enum):
    """How descriptors become an embedding: ``ATTENTIVE``, or ``GAP``, the global average."""

    ATTENTIVE = "attentive"
    GAP = "gap"


@dataclass(frozen=True, slots=True)
class FewShotOptions:
    """What a training depends on beside data, seed and budget.

    Attributes:
        dense: stage 1 classifies every descriptor; if not, their average.
        pooling: of stage 2 and of the result.
        metric: of stage 2 and of validation.
        lr: rate of SGD in stage 1; 0.1 in the paper, whose batch is four times as large.
        batch: pictures in a step of stage 1; 256 in the paper.
        weight_decay: of both stages.
        tuning: share of the budget for stage 2; 0 leaves it out.
        tuning_lr: rate in stage 2.
        scorer_factor: how much faster the scorer of attentive pooling learns.
        episodes: in a step of stage 2; 4 in the paper, at 250 steps an epoch.
        ways, shots, queries: size of an episode; validation has 15 queries.
        support_weight: weight of the classification of support pictures in stage 2.
        dense_support: classify every descriptor of them too.
        batch_norms: let BatchNorm normalise by the batch in stage 2, as the paper's code does.
        mirror: show pictures mirrored too, where the data allows it.
        shift: largest shift of a picture in pixels, its border repeated; none in the paper.
    """

    dense: bool = True
    pooling: Pooling = Pooling.ATTENTIVE
    metric: Metric = Metric.PROJECTION
    lr: float = 0.05
    batch: int = 64
    weight_decay: float = 5e-4
    tuning: float = 0.3
    tuning_lr: float = 1e-3
    scorer_factor: float = 10.0
    episodes: int = 1
    ways: int = 5
    shots: int = 1
    queries: int = 10
    support_weight: float = 0.5
    dense_support: bool = False
    batch_norms: bool = True
    mirror: bool = True
    shift: int = 4

    def __post_init__(self) -> None:
        for name in ("lr", "tuning_lr", "scorer_factor"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"--set {name}={getattr(self, name):g}: expected above 0")
        for name in ("weight_decay", "support_weight", "shift"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"--set {name}={getattr(self, name):g}: expected 0 or more")
        for name, least in (("batch", 2), ("episodes", 1)):  # one picture has no variance
            if getattr(self, name) < least:
                raise ConfigError(f"--set {name}={getattr(self, name)}: expected {least} or more")
        if not 0 <= self.tuning <= 1:
            raise ConfigError(f"--set tuning={self.tuning:g}: expected a share from 0 to 1")
        self.episode  # noqa: B018 - refuses what makes no episode

    @property
    def episode(self) -> EpisodeShape:
        """Size of an episode of stage 2."""
        return EpisodeShape(self.ways, self.shots, self.queries)

    def in_tuning(self, spent: float) -> bool:
        """Whether a share of the budget belongs to stage 2."""
        return spent >= 1.0 - self.tuning

    def rate(self, spent: float) -> float:
        """Return the rate of SGD after a share of the budget: ten times less late in a stage."""
        first = 1.0 - self.tuning
        if self.in_tuning(spent):
            return self._dropped(self.tuning_lr, (spent - first) / max(self.tuning, 1e-9))
        return self._dropped(self.lr, spent / first)

    def _dropped(self, rate: float, share: float) -> float:
        return rate * (_DROP if share >= _DROP_AT else 1.0)
