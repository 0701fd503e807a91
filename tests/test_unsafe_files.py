"""Files that would run a command when opened: refused by name, and the command is not run."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from edgekit.errors import UnsafeFileError  # noqa: E402
from edgekit.loading import load  # noqa: E402


class Command:
    """Pickles as the call of a shell command that writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"echo run > '{self.marker}'",)


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


def tar_bytes(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def npy_bytes(command: Command) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([command], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def npz_bytes(command: Command) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, weights=np.array([command], dtype=object))
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


def replaced(pickles: list[bytes], index: int, command: Command) -> bytes:
    return b"".join([*pickles[:index], pickle.dumps(command, 2), *pickles[index + 1 :]])


def torch_tar(command: Command) -> bytes:
    nothing, empty = pickle.dumps(0, 2), pickle.dumps([], 2)
    members = {"storages": nothing + empty, "tensors": nothing, "pickle": pickle.dumps(command, 2)}
    return tar_bytes(members)


def checkpoint_with(field: str, value: object) -> dict[str, object]:
    whole: dict[str, object] = {
        "format": "edgekit",
        "version": 1,
        "arch": "zoo:efficientnet_lite0",
        "state_dict": {"a": torch.zeros(1)},
        "inputs": [{"name": "image", "shape": [1, 3, 224, 224]}],
        "preprocessing": None,
        "task": "classification",
        "num_classes": None,
    }
    return whole | {field: value}


def unsafe_torch_load(content: bytes) -> None:
    torch.load(io.BytesIO(content), weights_only=False)


def unsafe_torch_load_file(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    torch.load(path, weights_only=False)


def unsafe_numpy_load(content: bytes) -> None:
    loaded = np.load(io.BytesIO(content), allow_pickle=True)
    if isinstance(loaded, np.lib.npyio.NpzFile):
        dict(loaded)


def unsafe_member_load(content: bytes) -> None:
    """Open the members as torch.export and torch.jit did in their first versions."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in archive.namelist():
            if name.endswith(".pt"):
                unsafe_torch_load(archive.read(name))
            elif name.endswith(".pkl"):
                pickle.loads(archive.read(name))


Container = tuple[Callable[[Command], bytes], Callable[..., object], str]

# How the command is packed, what would run it, and what the message must name.
CONTAINERS: dict[str, Container] = {
    **{
        f"bare pickle, protocol {protocol}": (
            lambda command, protocol=protocol: pickle.dumps(command, protocol),
            pickle.loads,
            "posix.system",
        )
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    "torch.save": (
        lambda c: torch_bytes({"w": torch.zeros(2), "x": c}),
        unsafe_torch_load,
        "posix",
    ),
    "torch.save, inner list": (
        lambda c: torch_bytes({"state_dict": {"w": [1, {"deep": c}]}}),
        unsafe_torch_load,
        "posix.system",
    ),
    "torch.save, pickle in a pickle": (
        lambda c: torch_bytes({"w": Nested(c)}),
        unsafe_torch_load,
        "torch.storage._load_from_bytes",
    ),
    "torch.save, network": (
        lambda c: torch_bytes(PickledNet(c)),
        unsafe_torch_load,
        "posix.system",
    ),
    **{
        f"checkpoint, field {field}": (
            lambda command, field=field: torch_bytes(checkpoint_with(field, command)),
            unsafe_torch_load,
            "posix.system",
        )
        for field in ("format", "arch", "state_dict", "inputs", "preprocessing", "num_classes")
    },
    "old torch.save": (lambda c: torch_bytes([c], legacy=True), unsafe_torch_load, "posix.system"),
    "old torch.save, network": (
        lambda c: torch_bytes(PickledNet(c), legacy=True),
        unsafe_torch_load,
        "posix.system",
    ),
    **{
        f"old torch.save, pickle {index}": (
            lambda command, index=index: replaced(legacy_pickles({"a": 1}), index, command),
            unsafe_torch_load,
            "posix.system",
        )
        for index in range(5)
    },
    "torch's tar": (torch_tar, unsafe_torch_load_file, "posix.system"),
    "torch.export": (
        lambda c: zip_bytes(
            {
                "net/archive_format": b"pt2",
                "net/models/model.json": b"{}",
                "net/data/sample_inputs/model.pt": torch_bytes((c,)),
            }
        ),
        unsafe_member_load,
        "posix.system",
    ),
    "TorchScript": (
        lambda c: zip_bytes(
            {
                "net/data.pkl": pickle.dumps(c, 2),
                "net/code/net.py": b"",
                "net/constants.pkl": pickle.dumps((), 2),
            }
        ),
        unsafe_member_load,
        "posix.system",
    ),
    "other zip": (
        lambda c: zip_bytes({"weights.pkl": pickle.dumps(c, 0)}),
        unsafe_member_load,
        "posix.system",
    ),
    "npy": (npy_bytes, unsafe_numpy_load, "posix.system"),
    "npz": (npz_bytes, unsafe_numpy_load, "posix.system"),
}


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "marker"


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_command_is_not_run(name: str, tmp_path: Path, marker: Path) -> None:
    pack, unsafe, named = CONTAINERS[name]
    content = pack(Command(marker))
    # The file is dangerous: without this check, a payload that does nothing would also pass.
    arguments = (content, tmp_path / "copy") if unsafe is unsafe_torch_load_file else (content,)
    with contextlib.suppress(RuntimeError, ValueError, TypeError, LookupError, AssertionError):
        unsafe(*arguments)
    assert marker.exists()
    marker.unlink()

    path = tmp_path / "model.pt"
    path.write_bytes(content)
    for arch in (None, "zoo:efficientnet_lite0"):
        with pytest.raises(UnsafeFileError) as caught:
            load(path, arch=arch)
        assert named in caught.value.message
        assert "nothing was run" in caught.value.message
        assert caught.value.message.isprintable()
        assert caught.value.hint
    assert not marker.exists()


def test_pickled_network_is_named_as_one(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    for legacy in (False, True):
        path.write_bytes(torch_bytes(nn.Sequential(nn.Linear(2, 2)), legacy=legacy))
        with pytest.raises(UnsafeFileError, match="a whole pickled network") as caught:
            load(path)
        assert "state_dict(), 'weights.pt')" in caught.value.hint


@pytest.mark.parametrize("arch", ["os:system", "evil_net:build", "evil_net:build(1)", "zoo", ""])
def test_file_cannot_choose_what_is_imported(
    arch: str, tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("evil_net.py").write_text(f"open({str(marker)!r}, 'w')\n")
    Path("model.pt").write_bytes(torch_bytes(checkpoint_with("arch", arch)))
    for typed in (None, "zoo:efficientnet_lite0"):
        with pytest.raises(UnsafeFileError, match="nothing was imported") as caught:
            load("model.pt", arch=typed)
        assert f"'{arch}'" in caught.value.message
        assert "type --arch module:factory" in caught.value.hint
    assert not marker.exists()
