"""The file of the float network, for the lanes of torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgekit.errors import ConfigError, LoadError
from edgekit.manifest import FileEntry, Manifest
from edgekit.runners.run_options import NetworkOptions

_RECIPE = "recipe.json"


@dataclass(frozen=True, slots=True)
class Network:
    """The file that was quantized, and how it is opened."""

    path: Path
    options: NetworkOptions = field(default_factory=NetworkOptions)


def options_for(result: Path, manifest: Manifest, network: Network) -> NetworkOptions:
    """Complete what the user says about the file by what a result knows about it.

    Args:
        result: directory of the result.
        manifest: its manifest.
        network: the file.

    Raises:
        LoadError: the file or the result's recipe cannot be read.
        ConfigError: the result was made from another file.
    """
    recipe = result / _RECIPE
    try:
        told = json.loads(recipe.read_text(encoding="utf-8"))
        found = FileEntry.of(network.path.parent, network.path.name).sha256
    except FileNotFoundError as error:
        raise LoadError(f"'{error.filename}' does not exist") from error
    except (OSError, ValueError) as error:
        raise LoadError(f"'{recipe}' or '{network.path}' cannot be read: {error}") from error
    made_from = told.get("model_sha256")
    if made_from is not None and made_from != found:
        raise ConfigError(
            f"'{network.path}' is not the file that '{result}' was made from",
            "name the file that was quantized, with --network",
        )
    options = network.options
    return replace(
        options,
        arch=options.arch or told.get("arch"),
        inputs=options.inputs or manifest.inputs,
    )
