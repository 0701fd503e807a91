"""Training of a student: steps, comparison on inputs held out, the best state, and resumption."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from edgekit.checkpointing import Checkpoint
from edgekit.memory import is_out_of_memory
from edgekit.rounding.learned_student import Teacher
from edgekit.rounding.student_network import StudentNetwork, Trained
from edgekit.rounding.student_objective import Objective, finite
from edgekit.rounding.student_options import Studying
from edgekit.synthetic import InputStream
from edgekit.types import Progress


class StudentTraining:
    """One run.

    Args:
        student: the network that learns.
        teacher: the float one.
        trained: what the student learns.
        stream: of the inputs.
        objective: the losses.
        options: how long and how fast.
        spreads: deviation of the float outputs of each layer.
    """

    def __init__(
        self,
        student: StudentNetwork,
        teacher: Teacher,
        trained: Trained,
        stream: InputStream,
        objective: Objective,
        options: Studying,
        spreads: Mapping[str, float],
    ) -> None:
        self.step, self.best_step = 0, 0
        self.before = self.best = math.nan
        self.ended = ""
        self._student, self._teacher, self._stream = student, teacher, stream
        self._tensors = dict(trained.tensors())
        self._objective, self._options = objective, options
        self._kept = self._copies()
        self._adam = torch.optim.Adam(self._groups(trained, spreads), betas=(0.9, 0.99))
        self._rates = [float(group["lr"]) for group in self._adam.param_groups]

    def run(self, checkpoint: Checkpoint | None, progress: Progress) -> None:
        """Train to the end, on from the checkpoint if there is one; leave the best state."""
        held = self._stream.held_out(self._options.held_out)
        with torch.no_grad():
            wanted = self._teacher.run(*held)
        self._teacher.outputs.clear()
        first_ones = tuple(value[: self._options.batch] for value in held)
        self._objective = self._objective.balanced(self._student, self._teacher, first_ones)
        saved = None if checkpoint is None else checkpoint.load()
        if saved is None:
            self.before = self.best = self._judge(held, wanted)
        else:
            self._restore(saved)
        begun, first, total = time.monotonic(), self.step, self._options.steps
        every = max(total // self._options.judgements, 1)
        while self.step < total and not self.ended:
            values = self._survive()
            if values is None:
                break
            self.step += 1
            if self.step % every == 0 or self.step == total:
                self._compare(held, wanted)
            if checkpoint is not None and checkpoint.due():
                checkpoint.save(self._saved())
            left = (time.monotonic() - begun) / (self.step - first) * (total - self.step)
            progress(self._line(values, left), self.step / total)
        if checkpoint is not None:
            checkpoint.save(self._saved())
        self._load(self._kept)

    def _survive(self) -> dict[str, float] | None:
        """Take a step; ``None`` where there is no going on, with the reason noted."""
        try:
            values = self._advance()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.ended = "memory did not suffice"
            return None
        if values is None:
            self.ended = "a loss was not finite"
        return values

    def _advance(self) -> dict[str, float] | None:
        """Learn from one batch; a loss that is not finite changes nothing."""
        inputs, labels = self._stream.next()
        terms = self._objective.terms(self._student, self._teacher, inputs, labels)
        if not finite(terms):
            return None
        share = self._share()
        for group, rate in zip(self._adam.param_groups, self._rates, strict=True):
            group["lr"] = rate * share
        self._adam.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        self._adam.step()
        return {name: float(value.detach()) for name, value in terms.items()}

    def _share(self) -> float:
        """Return what the rates are multiplied by at this step."""
        done = self.step / self._options.steps
        rising = min((self.step + 1) / max(self._options.warmup * self._options.steps, 1), 1.0)
        return rising * 0.5 * (1 + math.cos(math.pi * done))

    def _compare(self, held: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
        score = self._judge(held, wanted)
        if score < self.best:
            self.best, self.best_step, self._kept = score, self.step, self._copies()

    def _judge(self, held: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> float:
        return self._objective.judge(self._student, held, wanted, self._options.batch)

    def _groups(self, trained: Trained, spreads: Mapping[str, float]) -> list[dict[str, Any]]:
        options = self._options
        groups = [
            ([weight.place for weight in trained.weights.values()], options.rate),
            ([weight.growth for weight in trained.weights.values()], options.step_rate),
            *(([bias], options.bias_rate * spreads[name]) for name, bias in trained.biases.items()),
            (list(trained.factors.values()), options.grid_rate),
        ]
        return [{"params": values, "lr": rate} for values, rate in groups if values]

    # -- states ---------------------------------------------------------------------------------

    def _copies(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self._tensors.items()}

    def _load(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                self._tensors[name].copy_(value)

    def _saved(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "tensors": self._copies(),
            "adam": self._adam.state_dict(),
            "stream": self._stream.state(),
            "kept": self._kept,
            "before": self.before,
            "best": self.best,
            "best_step": self.best_step,
            "ended": self.ended,
        }

    def _restore(self, saved: Mapping[str, Any]) -> None:
        self.step, self.best_step, self.ended = saved["step"], saved["best_step"], saved["ended"]
        self.before, self.best, self._kept = saved["before"], saved["best"], saved["kept"]
        self._load(saved["tensors"])
        self._adam.load_state_dict(saved["adam"])
        self._stream.restore(saved["stream"])

    def _line(self, values: Mapping[str, float], seconds_left: float) -> str:
        losses = " ".join(f"{name} {value:.3g}" for name, value in values.items())
        left = f"{seconds_left / 60:.0f} min" if seconds_left > 90 else f"{seconds_left:.0f} s"
        return (
            f"student {self.step}/{self._options.steps}: {losses}, held-out divergence "
            f"{self.best:.3g} (at first {self.before:.3g}), {left} left"
        )
