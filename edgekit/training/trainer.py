"""From the name of a network to a checkpoint of its trained weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from edgekit.architecture import Architecture, parse_arch
from edgekit.checkpoint import save_checkpoint
from edgekit.checkpointing import Checkpoint
from edgekit.errors import OutputError, UnsupportedError
from edgekit.registry import TRAINERS, resolve
from edgekit.stages import compute_device
from edgekit.types import Progress, no_progress

from .loop import Budget, Trained, TrainingTask, train


@dataclass(frozen=True, slots=True)
class Training:
    """A task that is ready to run.

    Attributes:
        task: what the loop trains.
        data: what it learns from, in words.
        architecture: the network, with what the data decides of it.
        identity: what beside network, seed, device and machine decides the result.
        baseline: the metric without a network, or of a simpler one.
        baseline_name: what that is, in words.
    """

    task: TrainingTask
    data: str
    architecture: Architecture
    identity: Mapping[str, str]
    baseline: float | None = None
    baseline_name: str = ""


class Trainer(Protocol):
    """What ``TRAINERS`` names: sets up the training of a network of the zoo."""

    def __call__(
        self,
        architecture: Architecture,
        data: Path | None,
        *,
        seed: int,
        device: torch.device,
        settings: Sequence[str],
    ) -> Training:
        """Return the task with its data; see :func:`train_model` for what the arguments are."""
        ...


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What was trained, on what, and what came of it."""

    name: str
    out: Path
    seed: int
    device: str
    training: Training
    trained: Trained

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        trained = self.trained
        return {
            "name": self.name,
            "file": str(self.out),
            "size_bytes": self.out.stat().st_size,
            "data": self.training.data,
            "options": self.training.identity.get("options", ""),
            "seed": self.seed,
            "device": self.device,
            "threads": torch.get_num_threads(),
            "steps": trained.steps,
            "seconds": trained.seconds,
            "metric": trained.metric,
            "score": trained.score,
            "best_step": trained.best_step,
            "baseline": self.training.baseline,
            "baseline_name": self.training.baseline_name,
            "losses": dict(trained.losses),
            "history": [{"step": step, "score": score} for step, score in trained.history],
        }


def train_model(
    name: str,
    out: str | Path,
    *,
    data: str | Path | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
    settings: Sequence[str] = (),
    progress: Progress = no_progress,
) -> TrainingReport:
    """Train a network of the zoo and write it as an edgekit checkpoint.

    While it runs, ``OUT.training`` holds its state; the file goes when the result is written.

    Args:
        name: a key of the zoo, or ``NAME(width=8)``.
        out: the file to write; an existing file is replaced.
        data: folder to learn from; drawn pictures if ``None``.
        steps: number of steps.
        minutes: longest time; with ``steps``, whichever is over first.
        seed: seed of everything random.
        device: ``auto``, ``cpu`` or ``cuda``.
        resume: go on from ``OUT.training`` where it is there.
        settings: options of this training, ``KEY=VALUE`` each.
        progress: told the step, the losses and the time left.

    Raises:
        ConfigError: an unknown network or option, no budget, or a wrong layout of the data.
        UnsupportedError: the network has no training here.
        OutputError: a file cannot be written, or an unfinished run is in the way.
        TrainingError: a loss became infinite or no number.
    """
    path = Path(out)
    architecture = _architecture(name)
    budget = Budget(steps, minutes)
    place = compute_device(device)
    state = path.with_name(f"{path.name}.training")
    _check_output(path, state, resume)
    progress("data", 0.0)
    trainer: Trainer = resolve(TRAINERS, architecture.factory, "training")
    folder = None if data is None else Path(data)
    training = trainer(architecture, folder, seed=seed, device=place, settings=settings)
    checkpoint = Checkpoint(
        state,
        _identity(architecture, training, budget, seed, place),
        elsewhere=f"remove '{state}'",
    )
    trained = train(training.task, budget, checkpoint=checkpoint, progress=progress)
    model = architecture.zoo_model()
    save_checkpoint(
        path,
        arch=str(training.architecture),
        state_dict=trained.weights,
        inputs=model.inputs,
        preprocessing=model.preprocessing,
        task=model.task,
        num_classes=training.architecture.num_classes(),
    )
    checkpoint.remove()
    progress("done", 1.0)
    return TrainingReport(name, path, seed, place.type, training, trained)


def _architecture(name: str) -> Architecture:
    architecture = parse_arch(f"zoo:{name}")
    architecture.zoo_model()  # an unknown name must not read as one without training
    if architecture.factory not in TRAINERS:
        raise UnsupportedError(
            f"edgekit does not train '{name}'", f"it trains: {', '.join(TRAINERS)}"
        )
    return architecture


def _check_output(path: Path, state: Path, resume: bool) -> None:
    """Refuse what could only fail after hours.

    Raises:
        OutputError: the folder does not exist, or a run is in the way.
        ConfigError: there is nothing to go on from.
    """
    if not path.parent.is_dir() or path.is_dir():
        raise OutputError(
            f"'{path}' cannot be written: "
            + ("it is a folder" if path.is_dir() else "its folder does not exist"),
            "name a file in a folder that exists with --out",
        )
    if state.exists() and not resume:
        raise OutputError(
            f"'{state}' holds an unfinished training",
            "go on with --resume, or remove the file to begin anew",
        )


def _identity(
    architecture: Architecture, training: Training, budget: Budget, seed: int, device: torch.device
) -> dict[str, str]:
    return {
        "network": str(architecture),
        **training.identity,
        "budget": repr(budget),
        "seed": str(seed),
        "device": device.type,
        "thread count": str(torch.get_num_threads()),
        "torch version": str(torch.__version__),
    }
