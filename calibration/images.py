"""Real images from a folder: the labelled upper control, never part of a data-free result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from edgekit.capture import CapturedModel
from edgekit.datasets import list_images, read_image
from edgekit.errors import CalibrationError
from edgekit.observe import observe_set, with_notes
from edgekit.preprocess import preprocess_batch
from edgekit.quant.statistics import Statistics
from edgekit.synthetic import SyntheticSet
from edgekit.types import Progress, no_progress


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """Options of the control: folder, sample count, batch size and seed (which files are drawn)."""

    folder: Path
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
        """Return statistics of every float activation on the images.

        Raises:
            CalibrationError: the network does not take one image, or its preprocessing is unknown.
        """
        paths = self._draw()
        size = self.batch if model.batch else 1
        parts = []
        for start in range(0, len(paths), size):
            parts.append(self._read(model, paths[start : start + size]))
            progress("calibrate", (start + len(parts[-1])) / len(paths))
        made = SyntheticSet((torch.cat(parts),), None, "images")
        statistics = observe_set(model, made, size, seed=self.seed, second_moments=second_moments)
        return with_notes(
            statistics, f"control: calibrated on {len(paths)} real images, so not data-free"
        )

    def _draw(self) -> list[Path]:
        files = list(list_images(self.folder))
        order = torch.randperm(len(files), generator=torch.Generator().manual_seed(self.seed))
        return sorted(files[index] for index in order[: self.samples].tolist())

    def _read(self, model: CapturedModel, paths: list[Path]) -> Tensor:
        if len(model.inputs) != 1 or len(model.inputs[0].shape) != 4:
            raise CalibrationError(
                "images:DIR needs a network with one image input, "
                f"this one has inputs {[spec.shape for spec in model.inputs]}",
                "use --calibration renorm",
            )
        if model.preprocessing is None:
            raise CalibrationError(
                "images:DIR needs to know how an image becomes the network's input",
                "add --preprocessing, for example mean=0.485/0.456/0.406,std=0.229/0.224/0.225,"
                "resize=256,crop=224",
            )
        images = [read_image(path) for path in paths]
        return torch.from_numpy(preprocess_batch(images, model.preprocessing))
