"""Rounding of narrow weights: which neighbour on the grid each weight takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgekit.quantized import QuantizedModel
from edgekit.rounding.learned import learn_rounding, learning_for
from edgekit.rounding.sequential import measurable_layers, round_sequentially
from edgekit.rounding.squant import round_by_squant
from edgekit.rounding.student import teach_student
from edgekit.rounding.student_options import studying_for
from edgekit.types import Effort, Progress, Rounding, no_progress

__all__ = ["choose_rounding", "round_weights"]


def choose_rounding(wanted: Rounding, effort: Effort, calibration: str) -> Rounding:
    """Return the method that ``auto`` means for an effort and a calibration.

    ClusterQ's generator has a student to go with it; on sets that end, what a student gains over
    learned rounding it loses again (ResNet-20 at W4A4).
    """
    if wanted is not Rounding.AUTO:
        return wanted
    if effort is Effort.INSTANT:
        return Rounding.GPTQ
    return Rounding.STUDENT if calibration == "clusterq" else Rounding.LEARNED


def round_weights(
    model: QuantizedModel,
    method: Rounding,
    effort: Effort = Effort.STANDARD,
    seed: int = 0,
    progress: Progress = no_progress,
    checkpoint: Path | None = None,
) -> QuantizedModel:
    """Round the weights of all layers below 8 bits by a method, where there is what it needs.

    Without inputs to measure on, or with a fixed batch, SQuant takes the place of any other method,
    and so it does for layers that GPTQ cannot lay out as rows: transposed, 1-D and 3-D
    convolutions.

    Args:
        model: the model with nearest codes.
        method: how.
        effort: how long to learn.
        seed: of the inputs that are learned on.
        progress: called as layers are done, and at every step of learning.
        checkpoint: file that a student's training is saved to and continued from.
    """
    if method is Rounding.NEAREST or all(codes.bits == 8 for codes in model.codes.values()):
        return model
    reference = None if method is Rounding.SQUANT else model.reference
    measurable = measurable_layers(model)
    rounded, moved = round_by_squant(model, skip=() if reference is None else measurable)
    if not moved and not measurable:
        return model
    if reference is None:
        return _decided(rounded, _without_inputs(method, bool(moved)))
    rounded = round_sequentially(
        rounded, reference, lambda done: progress("round weights", done / len(measurable))
    )
    rounded = _decided(rounded, "gptq")
    if method in (Rounding.LEARNED, Rounding.STUDENT):
        learning = learning_for(effort, seed, model, reference)
        rounded = learn_rounding(rounded, reference, learning, progress)
    if method is Rounding.STUDENT:
        options = studying_for(effort, seed)
        rounded = teach_student(rounded, reference, options, checkpoint, progress)
    return rounded


def _without_inputs(method: Rounding, moved: bool) -> str:
    """Return what was done without inputs, and why."""
    if method is Rounding.SQUANT:
        return "squant" if moved else "nearest: SQuant is not for codes in blocks"
    return f"{'squant' if moved else 'nearest'}: no inputs to measure on"


def _decided(model: QuantizedModel, rounding: str) -> QuantizedModel:
    return replace(model, decisions={**model.decisions, "rounding": rounding})
