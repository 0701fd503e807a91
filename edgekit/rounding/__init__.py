"""Rounding of narrow weights: which neighbour on the grid each weight takes."""

from __future__ import annotations

from dataclasses import replace

from edgekit.quantized import QuantizedModel
from edgekit.rounding.learned import learn_rounding, learning_for
from edgekit.rounding.sequential import narrow_layers, round_sequentially
from edgekit.types import Effort, Progress, Rounding, no_progress

__all__ = ["choose_rounding", "round_weights"]


def choose_rounding(wanted: Rounding, effort: Effort) -> Rounding:
    """Return the method that ``auto`` means for an effort."""
    if wanted is not Rounding.AUTO:
        return wanted
    return Rounding.GPTQ if effort is Effort.INSTANT else Rounding.LEARNED


def round_weights(
    model: QuantizedModel,
    method: Rounding,
    effort: Effort = Effort.STANDARD,
    seed: int = 0,
    progress: Progress = no_progress,
) -> QuantizedModel:
    """Round the weights of all layers below 8 bits by a method, where there is what it needs.

    Without inputs to measure on, or with a fixed batch, the nearest codes stay.

    Args:
        model: the model with nearest codes.
        method: how.
        effort: how long to learn.
        seed: of the inputs that are learned on.
        progress: called as layers are done, and at every step of learning.
    """
    total = narrow_layers(model)
    if method is Rounding.NEAREST or not total:
        return model
    reference = model.reference
    if reference is None:
        return _decided(model, "nearest: no inputs to measure on")
    rounded = round_sequentially(
        model, reference, lambda done: progress("round weights", done / total)
    )
    rounded = _decided(rounded, "gptq")
    if method is Rounding.LEARNED:
        rounded = learn_rounding(rounded, reference, learning_for(effort, seed), progress)
    return rounded


def _decided(model: QuantizedModel, rounding: str) -> QuantizedModel:
    return replace(model, decisions={**model.decisions, "rounding": rounding})
