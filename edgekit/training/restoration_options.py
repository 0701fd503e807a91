"""Options of the training of restoration networks."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from edgekit.errors import ConfigError


class Contrast(str, enum.Enum):
    """Form of FCL-GAN's contrast of frequencies.

    ``DIFFERENTIABLE``: with a gradient. ``RELEASED``: as in the released code, a value without
    one. ``OFF``: none.
    """

    DIFFERENTIABLE = "differentiable"
    RELEASED = "released"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class RestorationOptions:
    """What a training depends on beside data, seed and budget.

    Attributes:
        lr: rate of Adam at the start, 1e-4 in the paper; halved after each quarter of the budget.
        batch: pictures of each domain in a step; 4 in the paper.
        crop: their height and width, a multiple of 16; 256 in the paper.
        cycle: weight of the cycle, 10 in the paper.
        contrast: form of the contrast of frequencies.
        contrast_weight: its weight, 0.1 in the paper.
        variation: weight of the total variation, 0.1 in the paper.
        identity_start: begin with generators that hand their picture back, solved for in closed
            form; the paper's begin with ``sigmoid(image)`` plus noise.
        identity: weight of ``1/2 [mean |S(s) - s| + mean |B(b) - b|]``, 0 in the paper: a picture
            of the right domain is to stay. It costs half as much again.
        fixed_norms: train on BatchNorm statistics measured at the start, in place of those of each
            batch as in the paper. Pictures of a small batch differ in brightness, and the head,
            which owes ``logit(image) - image``, cannot know by how much.
        pairs: the control: learn from pairs, by the mean absolute error alone.
    """

    lr: float = 1e-4
    batch: int = 4
    crop: int = 64
    cycle: float = 10.0
    contrast: Contrast = Contrast.DIFFERENTIABLE
    contrast_weight: float = 0.1
    variation: float = 0.1
    identity_start: bool = True
    identity: float = 0.0
    fixed_norms: bool = True
    pairs: bool = False

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ConfigError(f"--set lr={self.lr:g}: expected a positive number")
        if self.batch < 1:
            raise ConfigError(f"--set batch={self.batch}: expected at least 1")
        if self.crop < 32 or self.crop % 16:
            raise ConfigError(f"--set crop={self.crop}: expected a multiple of 16, at least 32")
        for name in ("cycle", "identity", "contrast_weight", "variation"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"--set {name}={getattr(self, name):g}: expected 0 or more")
        if self.fixed_norms and not self.identity_start:
            raise ConfigError(
                "--set identity_start=false: fixed statistics are measured at the identity start",
                "add --set fixed_norms=false",
            )

    def rate(self, spent: float) -> float:
        """Return the rate of Adam after a share of the budget."""
        return float(self.lr * 0.5 ** min(int(4.0 * spent), 3))
