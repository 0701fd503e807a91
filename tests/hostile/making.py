"""Small files of every container, to be doctored."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn


def torch_bytes(value: object, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def zip_bytes(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def zip_members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def tar_bytes(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def legacy_pickles(value: object) -> list[bytes]:
    """The five pickles of torch's old format: magic number, version, system, value, storages."""
    stream = io.BytesIO(torch_bytes(value, legacy=True))
    starts = [0]
    for _ in range(5):
        pickle.Unpickler(stream).load()
        starts.append(stream.tell())
    content = stream.getvalue()
    return [content[a:b] for a, b in itertools.pairwise(starts)]


class Small(nn.Module):
    """One layer; no operator has an argument of the input's name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layer(image).relu()


@cache
def exported() -> dict[str, bytes]:
    """The members of a torch.export archive of a small network with a dynamic batch."""
    network = Small().eval()
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(network, (torch.zeros(2, 4),), dynamic_shapes=shapes)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return zip_members(buffer.getvalue())


def exported_with(**members: bytes | None) -> bytes:
    """The archive with members replaced, added, or left out; ``__`` stands for a slash."""
    changed: dict[str, bytes | None] = dict(exported())
    for name, content in members.items():
        changed[name] = content
    return zip_bytes({name: content for name, content in changed.items() if content is not None})


PROGRAM = "archive/models/model.json"


def program_with(change: Callable[[dict[str, Any]], object]) -> bytes:
    """The archive with its program changed in place."""
    program = json.loads(exported()[PROGRAM])
    change(program)
    return exported_with(**{PROGRAM: json.dumps(program).encode()})


def config_with(kind: str, change: Callable[[dict[str, Any]], object], **members: bytes) -> bytes:
    """The archive with the table of its weights or constants changed in place."""
    name = f"archive/data/{kind}/model_{kind}_config.json"
    table = json.loads(exported()[name])
    change(table["config"])
    return exported_with(**{name: json.dumps(table).encode()}, **members)


def old_exported_with(**members: bytes) -> bytes:
    """An archive in the layout before torch 2.8, with members replaced."""
    content = {
        "version": b"8.20",
        "serialized_exported_program.json": exported()[PROGRAM],
        "serialized_state_dict.pt": torch_bytes(
            {"layer.weight": torch.zeros(4, 4), "layer.bias": torch.zeros(4)}
        ),
        "serialized_constants.pt": torch_bytes({}),
        "serialized_example_inputs.pt": torch_bytes(((torch.zeros(2, 4),), {})),
    }
    return zip_bytes(content | members)


class Saving(nn.Module):
    """In TorchScript, writes a file whenever its state is restored."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.training = False

    @torch.jit.export
    def __getstate__(self):  # type: ignore[no-untyped-def]
        return (self.path, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        torch.save(torch.zeros(1), self.path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def scripted(network: nn.Module) -> dict[str, bytes]:
    """The members of the network's TorchScript archive."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(network), buffer)
    return zip_members(buffer.getvalue())
