"""The loop that every training runs in: budget, progress, best state, going on after a kill.

A task draws what is random in a step from the step's number alone, so a run that was killed ends,
on the same machine with the same number of threads, in the weights that it would have had anyway.
That holds for a budget of steps; one of minutes ends where the clock says.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from edgekit.checkpointing import Checkpoint
from edgekit.errors import ConfigError, TrainingError
from edgekit.types import Progress, no_progress

VALIDATIONS = 20
"""Times in a run that the metric is measured, at even distances of the budget."""
_SMOOTH = 0.95  # of the losses that are shown


class TrainingTask(Protocol):
    """What is trained."""

    metric: str
    """What :meth:`validate` returns, with its unit; more is better."""

    def step(self, index: int, spent: float) -> Mapping[str, float]:
        """Take step number ``index`` and return its losses by name.

        Args:
            index: number of the step; it alone seeds what is random.
            spent: share of the budget that is used up, for schedules.
        """
        ...

    def validate(self) -> float:
        """Measure the network on data that it does not learn from."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """Return copies of the network's weights as :meth:`validate` saw them, on the CPU."""
        ...

    def state(self) -> dict[str, Any]:
        """Return all that a step depends on: numbers, strings, tensors, lists and dictionaries."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        ...


@dataclass(frozen=True, slots=True)
class Budget:
    """When a run ends: after so many steps or minutes, whichever comes first."""

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise ConfigError("a training needs a budget", "give --steps or --minutes")
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"--steps {self.steps}: expected at least 1")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise ConfigError(f"--minutes {self.minutes:g}: expected a positive number")

    def spent(self, steps: int, seconds: float) -> float:
        """Return the share that is used up, 1 at the end."""
        shares = [0.0]
        if self.steps is not None:
            shares.append(steps / self.steps)
        if self.minutes is not None:
            shares.append(seconds / (60.0 * self.minutes))
        return min(max(shares), 1.0)


@dataclass(frozen=True, slots=True)
class Trained:
    """The best state of a run, and how the run went.

    ``history`` holds step and metric of every validation, ``losses`` the smoothed losses at the
    end.
    """

    weights: Mapping[str, Tensor]
    metric: str
    score: float
    best_step: int
    steps: int
    seconds: float
    losses: Mapping[str, float]
    history: tuple[tuple[int, float], ...]


@dataclass
class _Run:
    """What the loop itself has to remember."""

    steps: int = 0
    seconds: float = 0.0
    validated: int = 0
    score: float = -math.inf
    best_step: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    history: list[list[float]] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def follow(self, losses: Mapping[str, float]) -> None:
        for name, value in losses.items():
            before = self.losses.get(name, value)
            self.losses[name] = _SMOOTH * before + (1.0 - _SMOOTH) * value


def train(
    task: TrainingTask,
    budget: Budget,
    *,
    checkpoint: Checkpoint | None = None,
    progress: Progress = no_progress,
) -> Trained:
    """Train until the budget is spent and return the state with the best metric.

    Args:
        task: what to train; it is changed.
        budget: when to stop.
        checkpoint: where the state is written to every few seconds and, if it is there already,
            continued from. It stays; the caller removes it when the result is safe.
        progress: told the step, the losses and the time left.

    Raises:
        TrainingError: a loss or the metric is not finite. The last saved state stays.
        CalibrationError: the checkpoint is damaged or belongs to another run.
        KeyboardInterrupt: interrupted; its text says where to go on from.
    """
    run = _Run()
    found = None if checkpoint is None else checkpoint.load()
    if found is not None:
        task.restore(found["task"])
        run = _Run(**found["run"])
    try:
        _advance(task, budget, run, checkpoint, progress)
    except KeyboardInterrupt as error:
        if checkpoint is None or not checkpoint.path.exists():
            raise
        text = f"'{checkpoint.path}' holds the run: go on with the same command and --resume"
        raise KeyboardInterrupt(text) from error
    return Trained(
        run.best,
        task.metric,
        run.score,
        run.best_step,
        run.steps,
        round(run.seconds, 1),
        dict(run.losses),
        tuple((int(step), score) for step, score in run.history),
    )


def _advance(
    task: TrainingTask,
    budget: Budget,
    run: _Run,
    checkpoint: Checkpoint | None,
    progress: Progress,
) -> None:
    started = time.monotonic() - run.seconds
    while run.validated < VALIDATIONS:
        spent = budget.spent(run.steps, run.seconds)
        losses = task.step(run.steps, spent)
        for name, value in losses.items():
            if not math.isfinite(value):
                raise _not_finite(f"the loss '{name}'", value, run.steps, checkpoint)
        run.follow(losses)
        run.steps += 1
        run.seconds = time.monotonic() - started
        spent = budget.spent(run.steps, run.seconds)
        due = int(spent * VALIDATIONS)
        if due > run.validated:
            _validate(task, run, due, checkpoint)
        if checkpoint is not None and (checkpoint.due() or run.validated == VALIDATIONS):
            checkpoint.save({"task": task.state(), "run": run.state()})
        progress(_status(task, run, spent), spent)


def _validate(task: TrainingTask, run: _Run, due: int, checkpoint: Checkpoint | None) -> None:
    score = task.validate()
    if not math.isfinite(score):
        raise _not_finite(task.metric, score, run.steps, checkpoint)
    run.validated = due
    run.history.append([float(run.steps), score])
    if score > run.score:
        run.score, run.best_step, run.best = score, run.steps, task.weights()


def _not_finite(what: str, value: float, step: int, checkpoint: Checkpoint | None) -> TrainingError:
    kept = checkpoint is not None and checkpoint.path.exists()
    where = f"; the state before it is in '{checkpoint.path}'" if checkpoint and kept else ""
    return TrainingError(
        f"training stopped: {what} became {value} in step {step + 1}{where}",
        "take a smaller learning rate, such as --set lr=3e-5, or look for broken pictures in "
        "the data",
    )


def _status(task: TrainingTask, run: _Run, spent: float) -> str:
    total = round(run.steps / spent)  # a step has been taken, so something is spent
    left = run.seconds * (1.0 - spent) / spent
    losses = ", ".join(f"{name} {value:.3g}" for name, value in run.losses.items())
    best = f"; {task.metric} {run.score:.2f}" if run.history else ""
    return f"train {run.steps}/{total}: {losses}{best}; {_duration(left)} left"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
