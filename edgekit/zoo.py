"""The networks that edgekit knows by name."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

from edgekit.architecture import Architecture
from edgekit.checkpoint import save_checkpoint
from edgekit.errors import UnsupportedError
from edgekit.registry import MODELS


def list_models() -> list[dict[str, Any]]:
    """Describe every network of the zoo as plain JSON values.

    Keys: ``name``, ``task``, ``description``, ``inputs``, ``preprocessing``, ``num_classes``,
    ``parameters`` (their number), ``weights`` (``published``, ``trained``, ``seeded`` or nothing)
    and ``weights_available`` (whether the Python package that carries them is installed).
    """
    return [_describe(name) for name in MODELS]


def _describe(name: str) -> dict[str, Any]:
    model = Architecture("zoo", name).zoo_model()
    with torch.device("meta"):  # shapes only: building costs no memory and no random numbers
        network = model.build()
    return {
        "name": name,
        "task": model.task.value,
        "description": model.description,
        "inputs": [spec.to_dict() for spec in model.inputs],
        "preprocessing": None if model.preprocessing is None else model.preprocessing.to_dict(),
        "num_classes": model.num_classes,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "weights": weights_origin(name),
        "weights_available": model.weights is not None and _is_installed(model.weights_package),
    }


def _is_installed(package: str | None) -> bool:
    return package is None or importlib.util.find_spec(package) is not None


def weights_origin(name: str) -> str | None:
    """Return what a network's weights are: ``published``, ``trained``, ``seeded`` or nothing.

    Raises:
        ConfigError: there is no network of that name.
    """
    origin = Architecture("zoo", name).zoo_model().weights_origin
    return None if origin is None else origin.value


def save_model(name: str, path: str | Path) -> Path:
    """Write a network of the zoo with its weights as an edgekit checkpoint.

    Args:
        name: a key of the zoo.
        path: the file to write; an existing file is replaced.

    Raises:
        ConfigError: there is no network of that name.
        MissingDependencyError: the package that carries the weights is not installed.
        OutputError: the file cannot be written.
        UnsupportedError: the zoo has no weights for the network.
    """
    architecture = Architecture("zoo", name)
    model = architecture.zoo_model()
    if model.weights is None:
        raise UnsupportedError(
            f"the zoo has no weights for '{name}'",
            f"train it and pass your weights with --arch {architecture}",
        )
    return save_checkpoint(
        Path(path),
        arch=str(architecture),
        state_dict=model.weights(),
        inputs=model.inputs,
        preprocessing=model.preprocessing,
        task=model.task,
        num_classes=model.num_classes,
    )
