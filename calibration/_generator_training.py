"""Training of the generator: steps, end of the warm-up, selection, and resumption."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from edgekit.checkpointing import Checkpoint
from edgekit.errors import CalibrationError
from edgekit.memory import is_out_of_memory
from edgekit.types import Progress

from ._clusterq_options import Losses, Schedule
from ._draws import CENTROIDS, CLUSTERS, HELD_OUT, TRAIN, stream
from ._image_source import ImageSource
from ._objective import Objective
from ._selection import Selection

_BETAS = (0.5, 0.999)
_HELD_OUT_BATCHES = 4
_FEW_CLASSES = 100  # up to here every centroid is set from images of its own before it is used
_IMAGES_FOR_CENTROID = 8
_IMAGES_FOR_CLUSTER = 16
_HALVINGS = 2
_SMALLEST_BATCH = 2  # a generator normalises over the batch


@dataclass
class TrainingState:
    """Where a run stands, less its tensors."""

    batch: int
    step: int = 0
    halvings: int = 0
    seconds: float = 0.0
    ended: str = ""
    history: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class GeneratorTraining:
    """One training run.

    Args:
        source: the generator, in front of its network.
        losses: weights of the losses.
        schedule: steps and batches.
        seed: seed of everything random.
    """

    def __init__(self, source: ImageSource, losses: Losses, schedule: Schedule, seed: int) -> None:
        self.source = source
        self._schedule = schedule
        self._seed = seed
        self._objective = Objective(source.network, losses)
        self._adam = torch.optim.Adam(source.generator.parameters(), lr=schedule.lr, betas=_BETAS)
        self.selection = Selection()
        self.made: tuple[tuple[Tensor, ...], Tensor] | None = None
        self.state = TrainingState(source.network.whole(schedule.batch))
        self._check(losses)

    def run(self, checkpoint: Checkpoint | None, progress: Progress) -> None:
        """Train to the end, on from the checkpoint if there is one; leave the best generator.

        Raises:
            CalibrationError: no loss was finite from the start, or memory does not suffice.
        """
        if checkpoint is not None and (saved := checkpoint.load()) is not None:
            self.restore(saved)
        state, total = self.state, self._schedule.epochs * self._schedule.steps
        begun, spent, first = time.monotonic(), state.seconds, state.step
        while state.step < total and not state.ended:
            try:
                values = self._advance()
            except (RuntimeError, MemoryError) as error:
                self._survive(error)
                continue
            elapsed = time.monotonic() - begun
            state.seconds = spent + elapsed
            if checkpoint is not None and checkpoint.due():
                checkpoint.save(self.saved())
            left = elapsed / max(state.step - first, 1) * (total - state.step)
            progress(self._line(values, left), state.step / total)
        if checkpoint is not None:
            checkpoint.save(self.saved())
        self.selection.take(self.source.generator)

    def further(self) -> tuple[tuple[Tensor, ...], Tensor]:
        """Take one step more, at the least rate, and return the images that it was taken on.

        Returns:
            The network's inputs and their classes ``[N]``, on the network's device.
        """
        self._step(self._schedule.rate(self._schedule.epochs))
        self.state.step += 1
        assert self.made is not None
        return self.made

    def _advance(self) -> dict[str, float]:
        """Take one step, and judge the generator at the end of an epoch; return the losses."""
        schedule, state = self._schedule, self.state
        epoch, within = divmod(state.step, schedule.steps)
        if epoch == schedule.warmup and within == 0:
            self._begin_classes()
        values = self._step(schedule.rate(epoch))
        if not _finite(values):
            self._give_up("a loss became infinite or NaN")
            return values
        state.step += 1
        if state.step % schedule.steps == 0:
            self._judge(epoch, values)
        return values

    def _step(self, rate: float) -> dict[str, float]:
        """Train on one batch; a loss that is not finite changes nothing."""
        source, objective, state = self.source, self._objective, self.state
        draws = stream(self._seed, TRAIN, state.step)
        batch = source.batch(state.step, state.batch, self._schedule.classes)
        inputs = source.inputs(batch, draws, augment=True)
        self.made = tuple(value.detach() for value in inputs), batch.labels
        seen = source.network.run(inputs)
        terms = objective.terms(seen, source.logits(seen), batch, draws)
        numbers = torch.stack([value.detach() for value in terms.values.values()]).tolist()
        values = dict(zip(terms.values, numbers, strict=True))
        if _finite(values):
            for group in self._adam.param_groups:
                group["lr"] = rate
            self._adam.zero_grad()
            objective.total(terms).backward()
            self._adam.step()
            objective.follow(terms, batch)
        return values

    def _begin_classes(self) -> None:
        """End the warm-up: find the clusters, where there are no logits, and the centroids."""
        source, size = self.source, self.state.batch
        classes = source.network.classes
        if classes is None:
            return
        if not classes.ready:
            wanted = _IMAGES_FOR_CLUSTER * classes.count
            look = source.look(CLUSTERS, -(-wanted // size), size)
            classes.fit(look.moments, stream(self._seed, CLUSTERS, -1))
            if classes.count == 1:
                self.state.notes.append(
                    "the deep features of all generated inputs are the same: there is one class, "
                    "so only the statistics of whole batches were matched"
                )
        self.selection.reopen()
        self._objective.empty_centroids(classes.count)
        if classes.count <= _FEW_CLASSES and self._objective.centroids is not None:
            wanted = _IMAGES_FOR_CENTROID * classes.count
            self._objective.set_centroids(source.look(CENTROIDS, -(-wanted // size), size))

    def _judge(self, epoch: int, values: Mapping[str, float]) -> None:
        """Compare this epoch's generator with the best one on images that no step has seen."""
        held_out = self._objective.held_out(
            self.source.look(HELD_OUT, _HELD_OUT_BATCHES, self.state.batch)
        )
        self.state.history.append({"epoch": epoch + 1, **values, **held_out})
        score = self._objective.score(held_out)
        if not math.isfinite(score):
            self._give_up("the held-out loss became infinite or NaN")
            return
        self.selection.judge(self.source.generator, epoch + 1, score, held_out)
        if self._schedule.falls_after(epoch):
            self.selection.stale = 0  # a lower rate always helps, so it is waited for
        if self.selection.stale >= self._schedule.patience:
            self.state.ended = "early stop"

    # -- what can go wrong ----------------------------------------------------------------------

    def _check(self, losses: Losses) -> None:
        classes = self.source.network.classes
        if classes is None:
            self.state.notes.append(
                "no BatchNorm sees one row for each sample, so classes cannot be told apart: only "
                "the statistics of whole batches were matched"
            )
        if losses.bns == 0 and (classes is None or not classes.ready):
            raise CalibrationError(
                "clusterq: without class logits the generator starts from the stored statistics, "
                "but the weight of that loss is 0",
                "give losses.bns a positive weight",
            )

    def _give_up(self, reason: str) -> None:
        epoch = self.state.step // self._schedule.steps + 1
        if not self.selection.found:
            raise CalibrationError(
                f"clusterq: {reason} in epoch {epoch}, before any generator was complete",
                "check --preprocessing and the weights, or use --calibration renorm",
            )
        self.state.ended = "not finite"
        self.state.notes.append(
            f"stopped in epoch {epoch}: {reason}; the generator of epoch "
            f"{self.selection.epoch} is used"
        )

    def _survive(self, error: BaseException) -> None:
        """Halve the batch after a lack of memory; raise everything else again."""
        if not is_out_of_memory(error):
            raise error
        state = self.state
        smaller = self.source.network.whole(max(state.batch // 2, _SMALLEST_BATCH))
        if state.halvings == _HALVINGS or smaller == state.batch:
            raise CalibrationError(
                f"clusterq: memory does not suffice for batches of {state.batch} generated inputs",
                "close other programs, use a narrower generator, or --calibration renorm, which "
                "needs no gradients",
            ) from error
        state.notes.append(f"memory was short: batches of {smaller} in place of {state.batch}")
        state.batch, state.halvings = smaller, state.halvings + 1

    # -- a checkpoint's content -----------------------------------------------------------------

    def saved(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        centroids, classes = self._objective.centroids, self.source.network.classes
        return {
            "state": asdict(self.state),
            "generator": self.source.generator.state_dict(),
            "adam": self._adam.state_dict(),
            "centroids": None if centroids is None else centroids.state(),
            "classes": {} if classes is None else classes.state(),
            "selection": self.selection.state(),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take over what :meth:`saved` returned."""
        self.state = TrainingState(**saved["state"])
        self.source.generator.load_state_dict(saved["generator"])
        self._adam.load_state_dict(saved["adam"])
        self.selection.restore(saved["selection"])
        classes = self.source.network.classes
        if classes is None:
            return
        classes.restore(saved["classes"])
        if saved["centroids"] is not None:
            self._objective.empty_centroids(classes.count)
            assert self._objective.centroids is not None
            self._objective.centroids.restore(saved["centroids"])

    def _line(self, values: Mapping[str, float], seconds_left: float) -> str:
        epoch = -(-self.state.step // self._schedule.steps)
        losses = " ".join(f"{name} {value:.3g}" for name, value in values.items())
        left = f"{seconds_left / 60:.0f} min" if seconds_left > 90 else f"{seconds_left:.0f} s"
        return f"clusterq {epoch}/{self._schedule.epochs}: {losses}, {left} left"


def _finite(values: Mapping[str, float]) -> bool:
    return all(map(math.isfinite, values.values()))
