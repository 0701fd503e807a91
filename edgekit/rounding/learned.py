"""Learned rounding: gradient descent decides which neighbour on the grid each weight takes.

As in AdaRound (Nagel et al., ICML 2020) the lower neighbour stays fixed and a soft place between
both is learned, with the step size beside it (GENIE-M, Jeon et al., CVPR 2023). Here the whole
network learns at once, with the error of every layer's output as the loss: one pass trains all
layers, on inputs as quantization leaves them. Soft places are not driven apart by a penalty but
by a slope that grows until they are hard.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgekit.quantized import QuantizedModel, lower
from edgekit.reference import Reference
from edgekit.rounding.learned_inputs import Source, sources_of
from edgekit.rounding.learned_student import Student, Variables, affordable_batch, variables_of
from edgekit.rounding.sequential import NEUTRAL
from edgekit.types import Effort, Progress, no_progress
from edgekit.work import multiplications

_HARD, _SOFT = 1000.0, 40.0
"""Slopes at the end, on a set of inputs and on noise alone. 1000 leaves nothing between two codes,
and the least error on inputs of the same kind. What is best for noise is not best for real data:
with 40, MobileNetV1's error on noise ends 2 % higher, its logit KL on images 16 % lower."""
_PROOF = 2
"""Batches on which the result must beat what it began with; noise ones are not learned on."""
_PULL = 0.35
"""How far towards the codes of the method before the soft places begin. From the float weight alone
(0) 60 steps on ResNet-20 end worse than GPTQ, from 0.8 hardly anything moves."""
_BEGIN, _END = 0.1, 0.9
"""Shares of the steps between which the slope grows, by a constant factor each."""


_STEPS = {Effort.INSTANT: 60, Effort.STANDARD: 250, Effort.BEST: 1000}
_WORK = 0.9e12
"""Multiply-accumulates of the forward passes that ``standard`` may fill with more steps: minutes. A
step of EfficientNet-Lite0 takes 3.5e9, so it has 260; one of ResNet-20 1.3e9, so it has 690."""


@dataclass(frozen=True, slots=True)
class Learning:
    """Options of :func:`learn_rounding`.

    Attributes:
        steps: how many there are.
        batch: samples of one step.
        rate: of offsets between neighbours, in steps of the weight's grid.
        step_rate: of the logarithms of weight steps.
        grid_rate: of the factors on steps of narrow activations.
        steepest: slope of soft places at the end, ``None`` for what suits the inputs.
        seed: of the inputs.
    """

    steps: int
    batch: int
    rate: float = 0.02
    step_rate: float = 0.002
    grid_rate: float = 0.002
    steepest: float | None = None
    seed: int = 0


def learning_for(
    effort: Effort, seed: int, model: QuantizedModel, reference: Reference
) -> Learning:
    """Return the options that suit an effort and the size of a network."""
    batch, steps = affordable_batch(reference), _STEPS[effort]
    if effort is Effort.STANDARD:
        affordable = int(_WORK / (batch * max(multiplications(model.sited.model.graph), 1)))
        steps = min(max(affordable, steps), _STEPS[Effort.BEST])
    return Learning(steps=steps, batch=batch, seed=seed)


def learn_rounding(
    model: QuantizedModel,
    reference: Reference,
    options: Learning,
    progress: Progress = no_progress,
) -> QuantizedModel:
    """Return the model with learned codes and steps, and learned grids of narrow activations.

    Args:
        model: the model, rounded by another method.
        reference: what to measure on.
        options: how long and how fast.
        progress: called at every step.
    """
    lowered = lower(model, NEUTRAL, {})
    variables = variables_of(lowered, _PULL, on_noise=model.statistics.altered)
    if not variables.weights and not variables.factors:
        return model
    if options.steepest is None:
        options = replace(options, steepest=_SOFT if model.statistics.altered else _HARD)
    generator = torch.Generator().manual_seed(options.seed)
    sources = sources_of(model, reference, options.batch, generator)
    proof = [[next(source.batches) for _ in range(_PROOF)] for source in sources]
    plain = [Student(lowered, source.reference, Variables({}, {})) for source in sources]
    before = _error(plain, proof)
    students = [Student(lowered, source.reference, variables) for source in sources]
    if not _train(students, sources, variables, options, progress):
        return _decided(model, "gptq: learning met a loss that is not finite")
    after = _error(students, proof)
    if not after < before:
        return _decided(model, f"gptq: learning did not lower the error ({before:.3g})")
    codes = {name: soft.codes() for name, soft in variables.weights.items()}
    learned = replace(model, codes={**model.codes, **codes}, grids=variables.grids(lowered))
    return _decided(learned, "learned")


def _decided(model: QuantizedModel, rounding: str) -> QuantizedModel:
    return replace(model, decisions={**model.decisions, "rounding": rounding})


def _error(students: Sequence[Student], batches: Sequence[Sequence[tuple[Tensor, ...]]]) -> float:
    """Return the mean loss of a network with hard codes over batches of each of its sources."""
    with torch.no_grad():
        losses = [
            student.loss(batch, None)
            for student, own in zip(students, batches, strict=True)
            for batch in own
        ]
    return float(torch.stack(losses).mean())


def _train(
    students: Sequence[Student],
    sources: Sequence[Source],
    variables: Variables,
    options: Learning,
    progress: Progress,
) -> bool:
    """Learn; return whether every loss was finite."""
    groups = [
        ([soft.offset for soft in variables.weights.values()], options.rate),
        ([soft.growth for soft in variables.weights.values()], options.step_rate),
        (list(variables.factors.values()), options.grid_rate),
    ]
    optimizer = torch.optim.Adam(
        [{"params": values, "lr": rate} for values, rate in groups if values], betas=(0.9, 0.99)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / options.steps))
    )
    started = time.perf_counter()
    for step in range(options.steps):
        share = (step / options.steps - _BEGIN) / (_END - _BEGIN)
        turn = step % len(students)
        steepness = (options.steepest or _HARD) ** min(max(share, 0.0), 1.0)
        loss = students[turn].loss(next(sources[turn].batches), steepness)
        if not loss.isfinite():
            return False
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        left = (time.perf_counter() - started) * (options.steps / (step + 1) - 1)
        text = f"learn rounding (loss {float(loss.detach()):.2g}, {left:.0f} s left)"
        progress(text, (step + 1) / options.steps)
    return True
