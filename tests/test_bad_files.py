"""Files that are damaged, something else or impossible, and places that cannot be read."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save as save_safetensors  # noqa: E402
from torch import nn  # noqa: E402

from edgekit.checkpoint import save_checkpoint  # noqa: E402
from edgekit.errors import EdgekitError, LoadError  # noqa: E402
from edgekit.loading import load  # noqa: E402
from edgekit.types import InputSpec  # noqa: E402


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


def onnx_bytes() -> bytes:
    onnx = pytest.importorskip("onnx")
    graph = onnx.helper.make_graph([], "g", [], [])
    content: bytes = onnx.helper.make_model(graph, producer_name="test").SerializeToString()
    return content


def png_bytes() -> bytes:
    cv2 = pytest.importorskip("cv2")
    encoded = cv2.imencode(".png", np.zeros((2, 2, 3), np.uint8))[1]
    content: bytes = encoded.tobytes()
    return content


def npz_of_numbers() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=np.zeros(3))
    return buffer.getvalue()


def npy_of_numbers() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


def exported_bytes() -> bytes:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), buffer)
    return buffer.getvalue()


def scripted_bytes() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), buffer)
    return buffer.getvalue()


def random_bytes() -> bytes:
    return b"\x9d" + random.Random(0).randbytes(5000)


OTHER_FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is empty"),
    "random bytes": (random_bytes, "is not a PyTorch or safetensors file"),
    "one byte": (lambda: b"\x80", "is not a PyTorch or safetensors file"),
    "text": (
        lambda: "läbel: cat\nlabel: dog\n".encode(),
        "is a text file that begins 'läbel: cat'",
    ),
    "html": (lambda: b"<!DOCTYPE html>\n<title>404</title>", "is a text file that begins '<!DOC"),
    "text like an instruction": (lambda: b"cat\ndog\nbird\n", "is a text file that begins 'cat'"),
    "png": (png_bytes, "is a PNG image"),
    "jpeg": (lambda: b"\xff\xd8\xff\xe0\x00\x10JFIF", "is a JPEG image"),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(500), "is an HDF5 file"),
    "onnx": (onnx_bytes, "is an ONNX model"),
    "tflite": (lambda: b"\x1c\0\0\0TFL3" + bytes(100), "is a TensorFlow Lite model"),
    "gzip": (lambda: b"\x1f\x8b\x08" + bytes(20), "is compressed by gzip"),
    "git lfs": (lambda: b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
    "npy": (npy_of_numbers, "is a NumPy array"),
    "npz": (npz_of_numbers, r"is a NumPy archive \(npz\)"),
    "tar": (lambda: tar_bytes({"a.txt": b"a"}), "is a tar archive"),
    "zip": (lambda: zip_bytes({"a.txt": b"a", "b/c.txt": b""}), "it holds a.txt, b/c.txt"),
    "pickle of plain values": (lambda: pickle.dumps({"a": 1}), "is a pickle without tensors"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_other_files_are_named(name: str, tmp_path: Path) -> None:
    content, said = OTHER_FILES[name]
    path = tmp_path / "model.pt"
    path.write_bytes(content())
    with pytest.raises(LoadError, match=said) as caught:
        load(path, arch="zoo:efficientnet_lite0")
    assert type(caught.value) is LoadError
    assert str(path) in caught.value.message
    assert caught.value.hint
    assert caught.value.message.isprintable()


def test_control_codes_of_a_file_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(torch_bytes({"a\x1b[2J\nb": 1}))
    with pytest.raises(LoadError, match=r"a\\x1b\[2J\\nb"):
        load(path, arch="zoo:efficientnet_lite0")


STATE = {"layer.weight": torch.arange(600.0).reshape(20, 30), "layer.bias": torch.ones(20)}
WEIGHTS: dict[str, Callable[[], bytes]] = {
    "zip": lambda: torch_bytes(STATE),
    "legacy": lambda: torch_bytes(STATE, legacy=True),
    "safetensors": lambda: save_safetensors(STATE),
    "torch.export": lambda: exported_bytes(),
    "TorchScript": lambda: scripted_bytes(),
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.filterwarnings("ignore")
def test_truncated(name: str, tmp_path: Path) -> None:
    content = WEIGHTS[name]()
    path = tmp_path / "model.pt"
    for cut in [*range(1, 40), *range(40, len(content), len(content) // 40), len(content) - 1]:
        path.write_bytes(content[:cut])
        with pytest.raises(LoadError) as caught:
            load(path, arch="zoo:efficientnet_lite0")
        assert type(caught.value) is LoadError
        assert "does not fit" not in caught.value.message, f"the first {cut} bytes were accepted"
        assert caught.value.hint


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_never_crash(name: str, tmp_path: Path) -> None:
    # Seeded, so a failure can be repeated. Tensors never fit the architecture, so no call returns.
    rng = random.Random(name)
    content = WEIGHTS[name]()
    path = tmp_path / "model.pt"
    for _ in range(300 if name in ("zip", "legacy", "safetensors") else 60):  # those are slow
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 8)):
            damaged[rng.randrange(len(damaged))] = rng.choice(
                (0, 0x28, 0x80, 0xFF, rng.randrange(256))
            )
        path.write_bytes(damaged)
        with pytest.raises(EdgekitError) as caught:
            load(path, arch="torch.nn:Identity")
        assert caught.value.message.isprintable()


VALUES = (None, -1, 0, 2**70, 1.5, True, "", "x", [], [1], {}, {"as_int": 3}, float("inf"))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to everything inside a JSON value."""
    items: Any = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def mutated(value: Any, rng: random.Random) -> Any:
    """Replace or remove one thing inside a JSON value."""
    value = json.loads(json.dumps(value))
    *path, last = rng.choice(list(places(value)))
    inner = value
    for key in path:
        inner = inner[key]
    if rng.random() < 0.2:
        del inner[last]
    else:
        inner[last] = json.loads(json.dumps(rng.choice(VALUES)))
    return value


@pytest.mark.filterwarnings("ignore")
def test_programs_of_another_structure_never_crash(tmp_path: Path) -> None:
    rng = random.Random(0)
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(io.BytesIO(exported_bytes())) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    documents = [name for name in members if name.endswith(".json")]
    loaded = 0
    for _ in range(250):
        name = rng.choice(documents)
        if members[name] == b'{"config": {}}':
            continue
        changed = json.dumps(mutated(json.loads(members[name]), rng)).encode()
        path.write_bytes(zip_bytes(members | {name: changed}))
        with contextlib.suppress(EdgekitError):
            load(path)
            loaded += 1
    assert 0 < loaded < 125  # most changes matter, and some are in what is left out


def test_directory(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="is a directory") as caught:
        load(tmp_path)
    assert ".safetensors" in caught.value.hint


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="there is no such file"):
        load(tmp_path / "model.pt")


def test_path_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a")
    with pytest.raises(LoadError, match="cannot be read"):
        load(tmp_path / "file" / "model.pt")


def test_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.pt")
    with pytest.raises(LoadError, match="is not a regular file"):
        load(tmp_path / "model.pt")


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Give up root's right to read everything; other users have not got it anyway."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(torch_bytes(STATE))
    path.chmod(0)
    with as_nobody(), pytest.raises(LoadError, match=r"cannot be read \(Permission denied\)"):
        load(path)


def test_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")

    def interrupt(_self: Path, _target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(
            path, arch="zoo:efficientnet_lite0", state_dict=STATE, inputs=[InputSpec("x", (1,))]
        )
    assert path.read_bytes() == b"old"
    assert sorted(tmp_path.iterdir()) == [path]
