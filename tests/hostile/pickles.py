"""Pickles that run a command, in every container that can hold one."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hostile.case import ZOO, Case, Command, file_case
from hostile.making import legacy_pickles, tar_bytes, torch_bytes, zip_bytes

NOTHING_RUN = r"would import .*; nothing was run"


class PickledNet(nn.Module):
    """A network with something in it that runs when it is unpickled."""

    def __init__(self, command: Command) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.command = command


class Nested:
    """Pickles as a call of torch's own loader on a second, inner pickle."""

    def __init__(self, command: Command) -> None:
        self.inner = torch_bytes(command)

    def __reduce__(self) -> Any:
        return torch.storage._load_from_bytes, (self.inner,)


class Evaluated:
    """Pickles as a call of ``eval``."""

    def __init__(self, command: Command) -> None:
        self.text = f"open({str(command.marker)!r}, 'w').close()"

    def __reduce__(self) -> Any:
        return eval, (self.text,)


class Restored:
    """Pickles as an ordered dictionary whose state is a command: runs at ``BUILD``."""

    def __init__(self, command: Command) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return dict, (), {"state": self.command}


def npy_bytes(command: Command) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([command], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def npz_bytes(command: Command) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, weights=np.array([command], dtype=object))
    return buffer.getvalue()


def replaced(pickles: list[bytes], index: int, command: Command) -> bytes:
    return b"".join([*pickles[:index], pickle.dumps(command, 2), *pickles[index + 1 :]])


def torch_tar(**members: bytes) -> bytes:
    nothing, empty = pickle.dumps(0, 2), pickle.dumps([], 2)
    content = {"storages": nothing + empty, "tensors": nothing, "pickle": pickle.dumps({}, 2)}
    return tar_bytes(content | members)


def checkpoint_with(field: str, value: object) -> dict[str, object]:
    whole: dict[str, object] = {
        "format": "edgekit",
        "version": 1,
        "arch": ZOO,
        "state_dict": {"a": torch.zeros(1)},
        "inputs": [{"name": "image", "shape": [1, 3, 224, 224]}],
        "preprocessing": None,
        "task": "classification",
        "num_classes": None,
    }
    return whole | {field: value}


def unpickle(path: Path) -> object:
    return pickle.loads(path.read_bytes())


def torch_load(path: Path) -> object:
    return torch.load(path, weights_only=False)


def numpy_load(path: Path) -> object:
    loaded = np.load(path, allow_pickle=True)
    return dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else loaded


def open_members(path: Path) -> None:
    """Open the members of an archive as torch.jit and torch.export did in their first versions."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".pkl"):
                with contextlib.suppress(ImportError, pickle.UnpicklingError):
                    pickle.loads(archive.read(name))


Pack = Callable[[Command], bytes]
_TORCH: dict[str, Pack] = {
    "torch.save": lambda c: torch_bytes({"w": torch.zeros(2), "x": c}),
    "torch.save, deep in a list": lambda c: torch_bytes({"state_dict": {"w": [1, {"deep": c}]}}),
    "torch.save, pickle in a pickle": lambda c: torch_bytes({"w": Nested(c)}),
    "torch.save, eval": lambda c: torch_bytes({"w": torch.zeros(2), "x": Evaluated(c)}),
    "torch.save, in a state": lambda c: torch_bytes({"w": torch.zeros(2), "x": Restored(c)}),
    "torch.save, in a key": lambda c: torch_bytes({(1, "a"): torch.zeros(2), "x": (c,)}),
    "torch.save, network": lambda c: torch_bytes(PickledNet(c)),
    "torch.save, network under a key": lambda c: torch_bytes({"model": PickledNet(c), "ema": 1}),
    **{
        f"edgekit checkpoint, field {field}": lambda c, field=field: torch_bytes(
            checkpoint_with(field, c)
        )
        for field in ("format", "arch", "state_dict", "inputs", "preprocessing", "num_classes")
    },
    "old torch.save": lambda c: torch_bytes([c], legacy=True),
    "old torch.save, network": lambda c: torch_bytes(PickledNet(c), legacy=True),
    **{
        f"old torch.save, pickle {index}": lambda c, index=index: replaced(
            legacy_pickles({"a": 1}), index, c
        )
        for index in range(5)
    },
    "torch's tar, pickle": lambda c: torch_tar(pickle=pickle.dumps(c, 2)),
    "torch's tar, storages": lambda c: torch_tar(storages=pickle.dumps(c, 2)),
    "torch's tar, tensors": lambda c: torch_tar(tensors=pickle.dumps(c, 2)),
}
_OTHER: dict[str, tuple[Pack, Callable[[Path], object]]] = {
    **{
        f"bare pickle, protocol {protocol}": (
            lambda c, protocol=protocol: pickle.dumps(c, protocol),
            unpickle,
        )
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    "bare pickle of a network": (lambda c: pickle.dumps(PickledNet(c)), unpickle),
    "zip with a pickle": (
        lambda c: zip_bytes({"weights.pkl": pickle.dumps(c, 0)}),
        open_members,
    ),
    "tar with a pickle": (
        lambda c: tar_bytes({"readme": b"a", "weights.pkl": pickle.dumps(c)}),
        lambda path: pickle.loads(path.read_bytes()[3 * 512 :]),
    ),
    "NumPy array": (npy_bytes, numpy_load),
    "NumPy archive": (npz_bytes, numpy_load),
}


def _case(name: str, pack: Pack, proof: Callable[[Path], object], arch: bool) -> Case:
    words = ("quantize", "model.pt", *(("--arch", ZOO) if arch else ()))
    titled = f"{name}, with --arch" if arch else name
    return file_case(titled, lambda marker: pack(Command(marker)), NOTHING_RUN, proof, words=words)


_ALL = {**{name: (pack, torch_load) for name, pack in _TORCH.items()}, **_OTHER}
PICKLES = (
    *(
        _case(name, pack, proof, arch)
        for name, (pack, proof) in _ALL.items()
        for arch in (False, True)
        if not arch or name in ("torch.save", "old torch.save, network")
    ),
    file_case(
        "torch.save, inspected",
        lambda marker: torch_bytes(PickledNet(Command(marker))),
        NOTHING_RUN,
        torch_load,
        words=("inspect", "model.pt"),
    ),
)
assert os.name == "posix", "the commands are for a POSIX shell"
