"""White Gaussian noise through the unaltered network: the lower control, not an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from edgekit.capture import CapturedModel
from edgekit.observe import observe, with_notes
from edgekit.quant.statistics import Statistics
from edgekit.signals import random_batches, white_noise
from edgekit.types import Progress, no_progress


@dataclass(frozen=True, slots=True)
class GaussianNoise:
    """Options of the control: sample count, batch size and seed."""

    samples: int = 64
    batch: int = 32
    seed: int = 0

    def observe(
        self,
        model: CapturedModel,
        *,
        second_moments: Sequence[str] = (),
        progress: Progress = no_progress,
    ) -> Statistics:
        """Return statistics of every float activation under noise."""
        generator = torch.Generator().manual_seed(self.seed)
        total = max(self.samples // (self.batch if model.batch else 1), 1)
        statistics = observe(
            model,
            random_batches(model, self.samples, self.batch, generator, draw=white_noise),
            method="noise",
            generator=generator,
            second_moments=second_moments,
            on_batch=lambda done: progress("calibrate", done / total),
        )
        return with_notes(statistics, "control: Gaussian noise does not calibrate a network")
