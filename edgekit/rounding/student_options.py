"""Options of a student's training."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.types import Effort

_STEPS = {Effort.INSTANT: 40, Effort.STANDARD: 250, Effort.BEST: 1000}


@dataclass(frozen=True, slots=True)
class Studying:
    """Options of a student's training.

    Attributes:
        steps: how many there are.
        batch: samples of a step, where the calibration makes no batches of its own.
        rate: of weights, in steps of their grids.
        step_rate: of the logarithms of weight steps.
        bias_rate: of biases, in units of the deviation of their layer's output.
        grid_rate: of the factors on steps of narrow activations.
        warmup: share of the steps over which the rates rise; they fall as a cosine.
        temperature: of the distillation.
        ce: weight of the loss for the classes that inputs were made for.
        layers: weight of the layers' outputs, in units of the distillation's loss at first.
        held_out: inputs that states are compared on.
        judgements: comparisons over the run.
        seed: of all draws.
    """

    steps: int = 250
    batch: int = 32
    rate: float = 0.002
    step_rate: float = 0.001
    bias_rate: float = 0.001
    grid_rate: float = 0.002
    warmup: float = 0.05
    temperature: float = 20.0
    ce: float = 1.0
    layers: float = 1.0
    held_out: int = 256
    judgements: int = 10
    seed: int = 0


def studying_for(effort: Effort, seed: int) -> Studying:
    """Return the options that suit an effort."""
    return Studying(steps=_STEPS[effort], seed=seed)
