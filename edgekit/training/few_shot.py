"""How the zoo's few-shot networks are trained: which pictures, which losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from edgekit.architecture import Architecture
from edgekit.errors import ConfigError
from edgekit.models.dcap import Dcap

from .dcap import DcapTraining
from .drawn_shapes import drawn_shapes
from .few_shot_data import open_few_shot_data
from .few_shot_options import FewShotOptions
from .settings import with_settings
from .trainer import Training


def few_shot_training(
    architecture: Architecture,
    data: Path | None,
    *,
    seed: int,
    device: torch.device,
    settings: Sequence[str],
) -> Training:
    """Set up the training of a network that embeds pictures.

    Args:
        architecture: the network of the zoo; its classifier gets the data's base classes where it
            does not state their number.
        data: pictures of classes; drawn ones if ``None``.
        seed: seed of everything random.
        device: where to train.
        settings: changes of :class:`FewShotOptions`, ``KEY=VALUE`` each.

    Raises:
        ConfigError: unknown settings, another layout, or too few pictures for an episode.
    """
    options = with_settings(FewShotOptions(), settings)
    model = architecture.zoo_model()
    assert model.preprocessing is not None  # what these networks see are pictures
    side = model.inputs[0].shape[2]
    pictures = drawn_shapes(side) if data is None else open_few_shot_data(data, side)
    classes = len(pictures.base.names)
    if not architecture.args and "base_classes" not in dict(architecture.kwargs):
        stated = (*architecture.kwargs, ("base_classes", classes))
        architecture = replace(architecture, kwargs=stated)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = cast(Dcap, architecture.build())
    if network.classifier.out_features != classes:
        raise ConfigError(
            f"'{architecture}' classifies {network.classifier.out_features} base classes, the data "
            f"has {classes}",
            f"train '{architecture.factory}' and leave their number to the data",
        )
    task = DcapTraining(network, pictures, model.preprocessing, options, seed=seed, device=device)
    return Training(
        task,
        pictures.description,
        architecture=architecture,
        identity={"data": pictures.identity, "options": repr(options)},
        baseline=100.0 / options.ways,
        baseline_name="chance",
    )
