"""Weights that were trained here and are part of the package."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from edgekit.checkpoint import read_checkpoint
from edgekit.errors import MissingDependencyError

_FOLDER = Path(__file__).parent / "weights"


def shipped_weights(name: str) -> dict[str, Tensor]:
    """Read a checkpoint that ``edgekit zoo train`` wrote and that was put into the package.

    Args:
        name: the network's name in the zoo.

    Raises:
        MissingDependencyError: this installation lacks the file.
    """
    path = _FOLDER / f"{name}.pt"
    if not path.is_file():
        raise MissingDependencyError(
            f"this installation of edgekit lacks the weights of '{name}'",
            f"install it again, or train the network: edgekit zoo train {name} --out {name}.pt",
        )
    saved = torch.load(path, map_location="cpu", weights_only=True)
    return dict(read_checkpoint(saved, path.name).state_dict)
