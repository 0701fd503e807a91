"""ClusterQ: synthetic data from a generator that learns a frozen network's statistics by class.

Gao, Zhang, Hong et al., "ClusterQ: Semantic Feature Distribution Alignment for Data-Free
Quantization" (arXiv 2205.00179), from its equations. A conditional generator is trained until the
network classifies its images (CE) and its BatchNorms see their stored statistics (``L_BNS``).
After a warm-up, each class has a centroid of the statistics in the deep layers, which its images
are pulled to (``L_SFDA``), with room to vary (``L_ICV``); the centroids follow as a moving average.

Networks without class logits have clusters of their deep features as classes, so any network with
BatchNorm will do. The paper's second half, a student fine-tuned on these images while the generator
goes on learning, takes :class:`~._generator_stream.GeneratorStream` (``edgekit.rounding.student``).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgekit.capture import CapturedModel
from edgekit.checkpointing import Checkpoint, run_identity
from edgekit.errors import CalibrationError, ConfigError
from edgekit.memory import is_out_of_memory
from edgekit.synthetic import SyntheticSet
from edgekit.types import Progress, no_progress

from ._class_network import ClassNetwork
from ._clusterq_options import Losses, Making, Schedule
from ._draws import SAMPLES, stream
from ._generator import LabelForm
from ._generator_stream import GeneratorStream
from ._generator_training import GeneratorTraining
from ._image_source import ImageSource
from ._statistics_losses import Scale, Variation

__all__ = [
    "BNS_ONLY",
    "GDFQ",
    "GPU_SCHEDULE",
    "PAPER_LOSSES",
    "ClusterQ",
    "LabelForm",
    "Losses",
    "Making",
    "Scale",
    "Schedule",
    "Variation",
]

GDFQ = Losses(sfda=0.0, icv=0.0)
"""The base that ClusterQ extends: classification and stored statistics only (ECCV 2020)."""
BNS_ONLY = Losses(ce=0.0, sfda=0.0, icv=0.0)
"""Stored statistics only, as ZeroQ matches them, but through a generator."""
PAPER_LOSSES = Losses(
    bns=0.1,
    sfda=0.9,
    icv=0.6,
    scale=Scale.ABSOLUTE,
    variation=Variation.ABSOLUTE,
    mean_lambda=0.5,
    variance_lambda=1.0,
)
"""The paper's losses with its constants."""
GPU_SCHEDULE = Schedule(
    epochs=400,
    steps=200,
    warmup=10,
    batch=200,
    classes=20,
    lr=1e-3,
    milestones=(0.25, 0.5, 0.75),
    patience=400,
)
"""The paper's schedule for small images, without early stop; for a GPU, with a checkpoint."""

_TRAINING_SHARE = 0.98  # of the progress of `synthesize`
_HISTORY = 40  # rows of the losses over time that are reported


@dataclass(frozen=True, slots=True)
class ClusterQ:
    """Options of the engine.

    Attributes:
        samples: images to make.
        batch: images that the network observes at once.
        seed: seed of everything random.
        losses: weights of the losses.
        schedule: length of the training; the default is meant for a CPU. For ResNet-20 it is
            estimated at a quarter of an hour on two idle cores (0.44 s of CPU time a step on one).
        making: the generator.
    """

    samples: int = 64
    batch: int = 32
    seed: int = 0
    losses: Losses = field(default_factory=Losses)
    schedule: Schedule = field(default_factory=Schedule)
    making: Making = field(default_factory=Making)

    def __post_init__(self) -> None:
        for name in ("samples", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"clusterq: {name} is {getattr(self, name)}, expected at least 1")

    def synthesize(
        self,
        model: CapturedModel,
        *,
        checkpoint: Path | None = None,
        progress: Progress = no_progress,
    ) -> SyntheticSet:
        """Train a generator for the network and return images of all classes in turn.

        On the CPU the same seed and thread count give the same images on one machine, whether the
        run was interrupted or not; a GPU adds up in no fixed order.

        Args:
            model: the network, on the device where the work is done.
            checkpoint: file that the state is written to every few seconds and, if it is there
                already, continued from; it stays, so that a finished run is not repeated.
            progress: told the epoch, the losses and the time left.

        Returns:
            The images on the CPU. Labels are classes, or clusters where there are no logits.

        Raises:
            CalibrationError: the network has no BatchNorm or no float input, training diverges at
                once, memory does not suffice, or the checkpoint belongs to another run.
        """
        started = time.monotonic()
        try:
            made, training = self._make(model, checkpoint, progress)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise CalibrationError(
                "clusterq: memory does not suffice for the generator",
                "close other programs, use a narrower generator, or --calibration renorm",
            ) from error
        facts = self._facts(training, time.monotonic() - started)
        return replace(made, facts=facts, notes=(_summary(facts), *facts["notes"]))

    def _make(
        self, model: CapturedModel, checkpoint: Path | None, progress: Progress
    ) -> tuple[SyntheticSet, GeneratorTraining]:
        network = ClassNetwork.of(model, self.making.clusters)
        source = ImageSource(network, self.making, self.seed)
        training = GeneratorTraining(source, self.losses, self.schedule, self.seed)
        kept = None
        if checkpoint is not None:
            kept = Checkpoint(checkpoint, run_identity(model, self._trained(), network.device))
        training.run(kept, lambda text, done: progress(text, done * _TRAINING_SHARE))
        made = self._sample(source, training.state.batch)
        further = GeneratorStream(
            model, self.losses, self.schedule, self.making, self.seed, training.saved()
        )
        made = replace(made, stream=further)
        progress("clusterq: images made", 1.0)
        return made, training

    def _trained(self) -> ClusterQ:
        """Return the options that the training depends on: it knows nothing of the sample count."""
        return replace(self, samples=1, batch=1)

    def _sample(self, source: ImageSource, size: int) -> SyntheticSet:
        """Make images in the batches that the generator is used to, and cut what is too much."""
        count = source.network.whole(self.samples)
        parts: list[tuple[Tensor, ...]] = []
        labels: list[Tensor] = []
        with torch.no_grad():
            for index in range(-(-count // size)):
                batch = source.batch(index, size, size)
                inputs = source.inputs(batch, stream(self.seed, SAMPLES, index))
                parts.append(tuple(value.cpu() for value in inputs))
                labels.append(batch.labels.cpu())
        joined = tuple(torch.cat(list(each))[:count] for each in zip(*parts, strict=True))
        known = source.network.classes
        aimed = known is not None and self.losses.ce > 0
        return SyntheticSet(joined, torch.cat(labels)[:count] if aimed else None, "clusterq")

    def _facts(self, training: GeneratorTraining, seconds: float) -> dict[str, Any]:
        state, selected = training.state, training.selection
        network = training.source.network
        known = network.classes
        return {
            "seed": self.seed,
            "device": str(network.device),
            "seconds": round(seconds, 1),
            "training_seconds": round(state.seconds, 1),
            "steps": state.step,
            "batch": state.batch,
            "classes": 0 if known is None else known.count,
            "classes_from": "none" if known is None else known.kind,
            "ended": state.ended or "complete",
            "selected_epoch": selected.epoch,
            "selected": {name: round(value, 5) for name, value in selected.row.items()},
            "history": _thinned(state.history),
            "notes": list(state.notes),
        }


def _thinned(history: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Return at most :data:`_HISTORY` rows, evenly spread, with the last one."""
    stride = -(-len(history) // _HISTORY) or 1
    rows = history[::-1][::stride][::-1]
    return [{name: round(value, 5) for name, value in row.items()} for row in rows]


def _summary(facts: Mapping[str, Any]) -> str:
    """Say in one line what was done, for the report."""
    selected = facts["selected"]
    text = (
        f"clusterq: {facts['steps']} steps in {facts['training_seconds']:.0f} s, the generator of "
        f"epoch {facts['selected_epoch']} kept, held-out statistics loss "
        f"{selected['held_out_bns']:.3g}"
    )
    if "held_out_accuracy" in selected:
        share = 100 * selected["held_out_accuracy"]
        text += f", {share:.0f} % of held-out images in their class ({facts['classes_from']})"
    return text
