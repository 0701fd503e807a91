"""Options of ClusterQ, in three groups, checked where they are made."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.errors import ConfigError

from ._generator import LabelForm
from ._statistics_losses import Scale, Variation


@dataclass(frozen=True, slots=True)
class Losses:
    """Weights of the losses; a weight of 0 switches one off and saves its work.

    The defaults were chosen on ResNet-20, from short runs of one seed: GDFQ's losses in stored
    deviations with ``bns`` 10 gave half the logit divergence at W8A8 of the paper's absolute form
    with 0.1. The weights of the class losses were not tuned.

    Attributes:
        ce: classification loss.
        bns: ``L_BNS``, alpha1 of the paper (0.1).
        sfda: ``L_SFDA``, alpha2 (0.9).
        icv: ``L_ICV``, alpha3 (0.6).
        beta: share of the new statistics in the centroids' moving average; 0 fixes the centroids.
        scale: unit of all errors of statistics.
        variation: form of ``L_ICV``.
        mean_lambda: room of a class's mean in ``L_ICV``.
        variance_lambda: room of its variance.
        first_deep: index of the first BatchNorm with class statistics; the paper's middle if
            ``None``.
    """

    ce: float = 1.0
    bns: float = 10.0
    sfda: float = 1.0
    icv: float = 0.5
    beta: float = 0.2
    scale: Scale = Scale.RELATIVE
    variation: Variation = Variation.RELATIVE
    mean_lambda: float = 0.5
    variance_lambda: float = 0.5
    first_deep: int | None = None

    def __post_init__(self) -> None:
        for name in ("ce", "bns", "sfda", "icv", "mean_lambda", "variance_lambda"):
            _at_least(f"losses.{name}", getattr(self, name), 0)
        if not 0 <= self.beta <= 1:
            raise ConfigError(f"clusterq: losses.beta is {self.beta}, expected 0 to 1")
        if not (self.ce or self.bns or self.semantic):
            raise ConfigError("clusterq: every loss has weight 0", "give one a positive weight")
        if self.first_deep is not None:
            _at_least("losses.first_deep", self.first_deep, 0)

    @property
    def semantic(self) -> bool:
        """Whether class statistics are needed."""
        return self.sfda > 0 or self.icv > 0


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and in what batches the generator trains.

    Attributes:
        epochs: epochs at most.
        steps: steps of an epoch.
        warmup: epochs before class statistics count.
        batch: images in a batch.
        classes: distinct classes in a batch, at most.
        lr: learning rate of Adam (betas 0.5 and 0.999); the paper's 1e-3 is for 80,000 steps.
        milestones: fractions of the epochs at which the learning rate falls to a tenth.
        patience: epochs at a reduced rate without a better held-out loss that end the run.
    """

    epochs: int = 50
    steps: int = 60
    warmup: int = 5
    batch: int = 64
    classes: int = 10
    lr: float = 1e-2
    milestones: tuple[float, ...] = (0.5, 0.75)
    patience: int = 12

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "classes", "patience"):
            _at_least(f"schedule.{name}", getattr(self, name), 1)
        _at_least("schedule.batch", self.batch, 2)
        _at_least("schedule.warmup", self.warmup, 0)
        if not self.lr > 0:
            raise ConfigError(f"clusterq: schedule.lr is {self.lr}, expected a positive number")

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch."""
        passed = sum(epoch >= share * self.epochs for share in self.milestones)
        return self.lr * 0.1**passed

    def falls_after(self, epoch: int) -> bool:
        """Whether the learning rate has its first fall still before it."""
        return self.rate(epoch) == self.lr != self.rate(self.epochs)


@dataclass(frozen=True, slots=True)
class Making:
    """The generator and what happens to its images.

    Attributes:
        latent: length of the latent vector.
        width: channels of the first map. The paper's 128 costs more than ResNet-20 itself.
        form: how the class enters. As a factor of a random vector, as in the paper's form for small
            images, it is learned far more slowly (ResNet-20, 200 steps, one seed: 54 % of held-out
            images in their class, against 95 %).
        clusters: number of classes where the network has no class logits.
        augment: probability that a batch of images is cropped and mirrored.
    """

    latent: int = 64
    width: int = 32
    form: LabelForm = LabelForm.CONDITIONAL
    clusters: int = 16
    augment: float = 0.5

    def __post_init__(self) -> None:
        for name in ("latent", "width"):
            _at_least(f"making.{name}", getattr(self, name), 1)
        _at_least("making.clusters", self.clusters, 2)
        if not 0 <= self.augment <= 1:
            raise ConfigError(f"clusterq: making.augment is {self.augment}, expected 0 to 1")


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise ConfigError(f"clusterq: {name} is {value}, expected at least {least}")
