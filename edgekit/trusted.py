"""Open a file that the user trusts: whatever it contains is run."""

from __future__ import annotations

import io
import pickle
import warnings
from pathlib import Path

import torch
from torch import nn

from edgekit.architecture import current_directory_importable
from edgekit.files.quiet import quiet_torch
from edgekit.files.recognize import FileKind
from edgekit.user_code import UserCode


def open_trusted(path: Path, kind: FileKind, where: str) -> object:
    """Open a file with Python's own unpickler; the current directory is importable.

    Args:
        path: the file.
        kind: what it is.
        where: its name, for messages.

    Raises:
        ConfigError: what it contains fails.
    """
    hint = "run edgekit where the modules that the file needs can be imported"
    with (
        UserCode(f"{where}: opening the trusted file", hint),
        current_directory_importable(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        if kind is FileKind.EXPORTED_PROGRAM:
            with quiet_torch():
                return torch.export.load(io.BytesIO(path.read_bytes()))
        if kind is FileKind.TORCHSCRIPT:
            return torch.jit.load(path, map_location="cpu")
        if kind is FileKind.PICKLE:
            return pickle.loads(path.read_bytes())  # noqa: S301 - that is what trust is for
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=False)


def unwrapped(network: nn.Module) -> nn.Module:
    """Take off what ``DataParallel`` and ``torch.compile`` put around the user's network."""
    while True:
        inner = getattr(network, "_orig_mod", None)
        if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = network.module
        if not isinstance(inner, nn.Module):
            return network
        network = inner
