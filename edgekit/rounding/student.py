"""The student: the quantized network learns from the float one, on inputs without end.

The second half of ClusterQ (Gao, Zhang, Hong et al., arXiv 2205.00179, after GDFQ, Xu et al., ECCV
2020): the float network's answers are what the quantized one is taught (distillation at a high
temperature), beside the classes that inputs were made for. With a generator both learn in turn, on
the same images. BatchNorms are folded before, weights lie behind straight-through rounding, and all
steps are learned (LSQ). It begins where another method ended, and of all its states the one that is
nearest to the float network on inputs held out is kept; if none is nearer, what it began with.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from edgekit.checkpointing import Checkpoint, run_identity
from edgekit.passes.measured_bias import with_measured_bias
from edgekit.quantized import QuantizedModel, lower
from edgekit.reference import Reference
from edgekit.rounding.learned_student import Teacher, affordable_batch
from edgekit.rounding.sequential import NEUTRAL
from edgekit.rounding.student_inputs import stream_of
from edgekit.rounding.student_network import StudentNetwork, Trained
from edgekit.rounding.student_objective import Objective
from edgekit.rounding.student_options import Studying
from edgekit.rounding.student_training import StudentTraining
from edgekit.sites import layer_name
from edgekit.types import Progress, Task, no_progress

_FEW = 16
"""Samples that a layer's deviation is measured on."""


def teach_student(
    model: QuantizedModel,
    reference: Reference,
    options: Studying,
    checkpoint: Path | None = None,
    progress: Progress = no_progress,
) -> QuantizedModel:
    """Return the model with codes, steps, biases and grids that were trained.

    Args:
        model: the model, rounded by another method.
        reference: the unaltered float network, with inputs for it.
        options: how long and how fast.
        checkpoint: file that the state is written to every few seconds and, if it is there
            already, continued from.
        progress: called at every step, with the losses and the time left.

    Raises:
        CalibrationError: the checkpoint belongs to another run.
        OutputError: it cannot be written.
    """
    before = model.decisions.get("rounding", "nearest")
    if model.statistics.altered:
        return _decided(model, f"{before} (no student: it would have to learn from noise)")
    with torch.no_grad():
        lowered = with_measured_bias(lower(model, NEUTRAL, {}), reference)
    trained = Trained.of(lowered)
    if not trained.weights and not trained.factors:
        return model
    options = replace(options, batch=min(options.batch, affordable_batch(reference)))
    training = StudentTraining(
        StudentNetwork(lowered, reference, trained),
        Teacher(reference),
        trained,
        stream_of(model, options.batch, options.seed),
        Objective(
            _scores_classes(model, reference), options.temperature, options.ce, options.layers
        ),
        options,
        _spreads(reference),
    )
    kept = None
    if checkpoint is not None:
        identity = run_identity(model.sited.model, options, torch.device("cpu"))
        kept = Checkpoint(checkpoint, {**identity, "start": _fingerprint(model)})
    training.run(kept, progress)
    if training.best_step == 0:
        return _decided(model, f"{before}: {_no_better(training)}")
    codes = {name: weight.codes() for name, weight in trained.weights.items()}
    taught = replace(
        model,
        codes={**model.codes, **codes},
        grids={**model.grids, **trained.grids(lowered)},
        biases={name: bias.detach() for name, bias in trained.biases.items()},
    )
    return _decided(taught, f"{before}, then a student: {_gain(training)}")


def _scores_classes(model: QuantizedModel, reference: Reference) -> bool:
    with torch.no_grad():
        scores = reference.graph(*(value[:2] for value in reference.inputs))[0]
    return model.sited.model.task is Task.CLASSIFICATION and scores.dim() == 2


def _spreads(reference: Reference) -> dict[str, float]:
    """Return the deviation of the output of each weighted layer, by the layer's name."""
    teacher = Teacher(reference)
    with torch.no_grad():
        teacher.run(*(value[:_FEW] for value in reference.inputs))
    nodes = {node.name: node for node in reference.graph.graph.nodes}
    return {
        layer_name(nodes[name]): float(v.std(correction=0)) for name, v in teacher.outputs.items()
    }


def _gain(training: StudentTraining) -> str:
    text = (
        f"held-out divergence {training.before:.3g} to {training.best:.3g} at step "
        f"{training.best_step} of {training.step}"
    )
    return f"{text} ({training.ended})" if training.ended else text


def _no_better(training: StudentTraining) -> str:
    reason = f", {training.ended}" if training.ended else ""
    return (
        f"a student was no nearer on held-out inputs (divergence {training.before:.3g} at first, "
        f"{training.step} steps{reason})"
    )


def _decided(model: QuantizedModel, rounding: str) -> QuantizedModel:
    return replace(model, decisions={**model.decisions, "rounding": rounding})


def _fingerprint(model: QuantizedModel) -> str:
    """Return a short text that differs where a student would begin or learn differently."""
    digest = hashlib.sha256(repr(sorted(model.grids.items())).encode())
    made = model.statistics.inputs
    tensors: list[Tensor] = [] if made is None else list(made.inputs)
    for name, codes in sorted(model.codes.items()):
        digest.update(name.encode())
        tensors += [codes.codes, codes.scale]
    for tensor in tensors:
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
