"""One run of distillation: what it minimises, in which order, and its state."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from edgekit.capture import CapturedModel
from edgekit.checkpointing import Checkpoint, run_identity
from edgekit.errors import CalibrationError, ConfigError
from edgekit.signals import signal_bounds
from edgekit.synthetic import SyntheticSet
from edgekit.types import Progress

from ._budget import affordable_rounds
from ._class_network import ClassNetwork
from ._clusterq_options import Losses
from ._draws import SAMPLES, TRAIN, ClassBatch, class_batch, stream
from ._objective import Objective
from ._padding import PaddingShift, with_padding_shifts
from ._set_statistics import SetStatistics
from ._statistics_losses import Distance, Scale, stored_spread
from ._views import view, window_of

STATISTICS_ONLY = Losses(ce=0.0, bns=1.0, sfda=0.0, icv=0.0)
"""No class enters: the set's statistics alone."""

_WARMUP = 0.25  # share of the rounds before class statistics count
_HISTORY = 40  # rows of the loss over time that are reported
_PATIENCE, _GAIN = 25, 0.01  # rounds without this relative gain end the run


@dataclass(frozen=True, slots=True)
class Settings:
    """Options of distillation.

    Attributes:
        samples: inputs to make.
        batch: inputs updated at once; a run that is continued keeps the number it had.
        seed: seed of everything random.
        rounds: updates of each input; from the network's work if ``None``.
        lr: step size of Adam at the start, in units of the signal's spread; it falls as a cosine.
        losses: ClusterQ's class terms beside the set's statistics.
        swing: shift the input of every strided convolution as well (``_teacher``).
        padding: weight of what zero padding shifts in the mean of a convolution's results, for
            quantizers that take that for an error (``_padding``); 0 saves its work.
    """

    samples: int = 128
    batch: int = 64
    seed: int = 0
    rounds: int | None = None
    lr: float = 0.1
    losses: Losses = field(default_factory=lambda: STATISTICS_ONLY)
    swing: bool = False
    padding: float = 0.0

    def __post_init__(self) -> None:
        for name in ("samples", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"distill: {name} is {getattr(self, name)}, expected at least 1")
        if (self.rounds is not None and self.rounds < 1) or not self.lr > 0:
            raise ConfigError(f"distill: rounds {self.rounds} and lr {self.lr} must be positive")
        if not self.padding >= 0:
            raise ConfigError(f"distill: padding is {self.padding}, expected at least 0")


class Distillation:
    """The state of one run."""

    def __init__(self, model: CapturedModel, options: Settings, checkpoint: Path | None) -> None:
        self._options = options
        watched, padded = with_padding_shifts(model) if options.padding > 0 else (model, ())
        self._network = ClassNetwork.of(watched, clusters=16)
        device = self._network.device
        norms = self._network.teacher.norms
        self._distance = Distance.over(norms, Scale.RELATIVE)
        self._stored = stored_spread(norms)
        self._window = window_of(model)
        self._checkpoint, state = None, None
        if checkpoint is not None:  # the batch may have shrunk for lack of memory meanwhile
            identity = run_identity(model, replace(options, batch=1), device)
            self._checkpoint = Checkpoint(checkpoint, identity)
            state = self._checkpoint.load()
        fresh = self._network.whole(min(options.batch, options.samples))
        size: int = fresh if state is None else state["batch"]
        self._parts = -(-options.samples // size)
        self._drawn = [
            tuple(
                value.to(device)
                for value in self._network.drawn(size, stream(options.seed, SAMPLES, part))
            )
            for part in range(self._parts)
        ]
        space = self._network.space
        self._signals = [
            [space.to_signal(i, drawn[i]).requires_grad_() for i in space.shaped]
            for drawn in self._drawn
        ]
        self._labels = [self._part_labels(part, size) for part in range(self._parts)]
        self._optimizers = [torch.optim.Adam(s, lr=options.lr) for s in self._signals]
        self._statistics = SetStatistics(self._parts)
        followed = [norm for norm in norms if norm.name in padded]
        self._padding = PaddingShift(followed, self._parts) if followed else None
        self._objective = self._class_objective()
        self._rounds = options.rounds or affordable_rounds(model, size * self._parts, self._window)
        self._round = 0
        self._history: list[float] = []
        self._ended = ""
        self._seconds = 0.0
        self._restore(state)

    def _part_labels(self, part: int, size: int) -> ClassBatch | None:
        known = self._network.classes
        if known is None:
            return None
        made = class_batch(self._options.seed, known.count, size, size, part)
        return made.to(self._network.device)

    def _class_objective(self) -> Objective | None:
        losses = self._options.losses
        known = self._network.classes
        if known is None or not known.ready or not (losses.ce or losses.semantic):
            return None
        return Objective(self._network, replace(losses, bns=0.0, scale=Scale.RELATIVE))

    def finish(self, progress: Progress, notes: Sequence[str]) -> SyntheticSet:
        """Run what is left and return the inputs."""
        started = time.monotonic() - self._seconds
        begun = self._round
        while self._round < self._rounds and not self._ended:
            self._one_round()
            self._seconds = time.monotonic() - started
            pace = (time.monotonic() - started) / max(self._round - begun, 1)
            left = pace * (self._rounds - self._round)
            progress(
                f"distill {self._round}/{self._rounds}: statistics {self._history[-1]:.3g}, "
                f"{_duration(left)} left",
                self._round / self._rounds,
            )
            if self._checkpoint is not None and (self._checkpoint.due() or self._done()):
                self._checkpoint.save(self._state())
        return self._made(notes)

    def _done(self) -> bool:
        return self._round == self._rounds or bool(self._ended)

    def _one_round(self) -> None:
        rate = self._options.lr * 0.5 * (1 + math.cos(math.pi * self._round / self._rounds))
        if self._objective is not None and self._round == int(_WARMUP * self._rounds):
            known = self._network.classes
            assert known is not None
            self._objective.empty_centroids(known.count)
        total = 0.0
        for part, optimizer in enumerate(self._optimizers):
            optimizer.param_groups[0]["lr"] = rate
            loss = self._step(part, optimizer)
            if not math.isfinite(loss):
                self._diverged(loss)
                return
            total = loss  # with the last part the set is complete
        self._history.append(total)
        self._round += 1
        self._stop_early()

    def _step(self, part: int, optimizer: torch.optim.Optimizer) -> float:
        draws = stream(self._options.seed, TRAIN, self._round * self._parts + part)
        signals = view(self._signals[part], self._window, draws)
        inputs = self._network.space.complete(signals, self._drawn[part])
        seen = self._network.run(inputs, draws if self._options.swing else None)
        loss = self._distance(self._statistics.with_part(part, seen.moments), self._stored)
        value = float(loss.detach())
        if self._padding is not None:
            shifts = seen.outputs[len(self._network.space.model.outputs) :]
            loss = loss + self._options.padding * self._padding.with_part(part, shifts)
        if self._objective is not None:
            batch, known = self._labels[part], self._network.classes
            assert batch is not None and known is not None
            terms = self._objective.terms(seen, known.logits(seen), batch, draws)
            loss = loss + self._objective.total(terms)
            self._objective.follow(terms, batch)
        if not math.isfinite(total := float(loss.detach())):
            return total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        self._into_domain(part)
        return value

    def _into_domain(self, part: int) -> None:
        """Move values that a step took outside the input's domain back to its border."""
        space = self._network.space
        with torch.no_grad():
            for position, signal in zip(space.shaped, self._signals[part], strict=True):
                bounds = signal_bounds(space.model.inputs[position], space.model.preprocessing)
                if bounds is not None:
                    signal.clamp_(*bounds)

    def _diverged(self, loss: float) -> None:
        if not self._history:
            raise CalibrationError(
                f"distill: the statistics loss is {loss} on random inputs",
                "the network's weights or stored statistics are not finite, or it overflows: "
                "check --preprocessing and the file",
            )
        self._ended = f"stopped in round {self._round}: the loss became {loss}"

    def _stop_early(self) -> None:
        recent, before = self._history[-_PATIENCE:], self._history[:-_PATIENCE]
        if len(before) >= _PATIENCE and min(recent) > min(before) * (1 - _GAIN):
            self._ended = f"no further gain after round {self._round}"

    def _made(self, notes: Sequence[str]) -> SyntheticSet:
        count = self._network.whole(self._options.samples)
        space = self._network.space
        parts = []
        labels = []
        with torch.no_grad():
            for signals, drawn in zip(self._signals, self._drawn, strict=True):
                inputs = space.complete(signals, drawn)
                parts.append(tuple(value.detach().cpu() for value in inputs))
                known = self._network.classes
                if known is not None and known.ready:
                    labels.append(known.logits(self._network.run(inputs)).argmax(1).cpu())
        joined = tuple(torch.cat(list(each))[:count] for each in zip(*parts, strict=True))
        stride = -(-len(self._history) // _HISTORY) or 1
        facts: dict[str, Any] = {
            "seed": self._options.seed,
            "device": str(self._network.device),
            "seconds": round(self._seconds, 1),
            "rounds": self._round,
            "batch": len(self._drawn[0][0]),
            "window": self._window,
            "padding": self._options.padding,
            "ended": self._ended or "complete",
            "first_loss": self._history[0],
            "loss": self._history[-1],
            "history": [round(value, 6) for value in self._history[::stride]],
        }
        summary = (
            f"distill: {count} inputs, {self._round} rounds in {self._seconds:.0f} s, statistics "
            f"loss {self._history[0]:.3g} -> {self._history[-1]:.3g}"
        )
        ended = [self._ended] if self._ended.startswith("stopped") else []
        return SyntheticSet(
            joined,
            torch.cat(labels)[:count] if labels else None,
            "distill",
            facts,
            (summary, *notes, *ended),
        )

    def _state(self) -> dict[str, Any]:
        return {
            "signals": [[s.detach() for s in signals] for signals in self._signals],
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "statistics": self._statistics.state(),
            "padding": None if self._padding is None else self._padding.state(),
            "centroids": None
            if self._objective is None or self._objective.centroids is None
            else self._objective.centroids.state(),
            "batch": len(self._drawn[0][0]),
            "round": self._round,
            "history": self._history,
            "ended": self._ended,
            "seconds": self._seconds,
        }

    def _restore(self, state: Mapping[str, Any] | None) -> None:
        if state is None:
            return
        with torch.no_grad():
            for signals, saved in zip(self._signals, state["signals"], strict=True):
                for signal, value in zip(signals, saved, strict=True):
                    signal.copy_(value)
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self._statistics.restore(state["statistics"])
        if self._padding is not None:
            self._padding.restore(state["padding"])
        if self._objective is not None and state["centroids"] is not None:
            known = self._network.classes
            assert known is not None
            self._objective.empty_centroids(known.count)
            assert self._objective.centroids is not None
            self._objective.centroids.restore(state["centroids"])
        self._round, self._history = state["round"], list(state["history"])
        self._ended, self._seconds = state["ended"], state["seconds"]


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
