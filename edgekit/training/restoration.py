"""How the zoo's restoration networks are trained: which pictures, which losses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch

from edgekit.architecture import Architecture
from edgekit.models.fcl_gan import Generator

from .blur_folders import open_blur_folders
from .drawn_pictures import DrawnPictures
from .fcl_gan import FclGan
from .paired_restoration import PairedRestoration
from .pictures import BlurredPictures
from .restoration_options import RestorationOptions
from .settings import with_settings
from .trainer import Training


def restoration_training(
    architecture: Architecture,
    data: Path | None,
    *,
    seed: int,
    device: torch.device,
    settings: Sequence[str],
) -> Training:
    """Set up the training of a network that maps blurred pictures to sharp ones.

    Args:
        architecture: the network of the zoo.
        data: folder of pictures; drawn ones if ``None``.
        seed: seed of everything random.
        device: where to train.
        settings: changes of :class:`RestorationOptions`, ``KEY=VALUE`` each.

    Raises:
        ConfigError: unknown settings, or a folder of another layout.
    """
    options = with_settings(RestorationOptions(), settings)
    pictures: BlurredPictures = (
        DrawnPictures(seed, side=max(192, options.crop))
        if data is None
        else open_blur_folders(data, options.crop)
    )

    def build() -> Generator:
        return cast(Generator, architecture.build())

    kind = PairedRestoration if options.pairs else FclGan
    task = kind(build, pictures, options, seed=seed, device=device)
    blurred = task.restorer.blurred_psnr()
    return Training(
        task,
        pictures.description,
        architecture=architecture,
        identity={"data": pictures.identity, "options": repr(options)},
        baseline=blurred,
        baseline_name="the blurred pictures themselves",
    )
