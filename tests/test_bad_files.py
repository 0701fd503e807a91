"""Files that are damaged, something else or impossible, and places that cannot be read."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import pickle
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

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


def legacy_pickles(value: object) -> list[bytes]:
    """The five pickles of torch's old format: magic number, version, system, value, storages."""
    stream = io.BytesIO(torch_bytes(value, legacy=True))
    starts = [0]
    for _ in range(5):
        pickle.Unpickler(stream).load()
        starts.append(stream.tell())
    content = stream.getvalue()
    return [content[a:b] for a, b in itertools.pairwise(starts)]


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


def header_only(length: int, header: bytes) -> bytes:
    return struct.pack("<Q", length) + header


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
    "torch.export": (exported_bytes, "is a torch.export archive"),
    "TorchScript": (scripted_bytes, "is a TorchScript archive"),
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
}


@pytest.mark.parametrize("name", WEIGHTS)
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
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 8)):
            damaged[rng.randrange(len(damaged))] = rng.choice(
                (0, 0x28, 0x80, 0xFF, rng.randrange(256))
            )
        path.write_bytes(damaged)
        with pytest.raises(EdgekitError) as caught:
            load(path, arch="torch.nn:Identity")
        assert caught.value.message.isprintable()


def patched_sizes(content: bytes, sizes: tuple[int, int]) -> bytes:
    """Overwrite both sizes of the first entry in a zip's table of contents."""
    place = content.index(b"PK\x01\x02") + 20
    return content[:place] + struct.pack("<II", *sizes) + content[place + 8 :]


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "zip, name outside": (
        lambda: zip_bytes({"net/data.pkl": b"", "../../etc/cron.d/x": b""}),
        r"point outside of it: \.\./\.\./etc",
    ),
    "zip, absolute name": (lambda: zip_bytes({"/etc/passwd": b""}), "point outside of it: /etc"),
    "zip, backslashes": (lambda: zip_bytes({"net\\..\\..\\x": b""}), "point outside of it"),
    "zip, drive": (lambda: zip_bytes({"C:/x": b""}), "point outside of it: C:/x"),
    "zip, two roots": (
        lambda: zip_bytes({"a/data.pkl": pickle.dumps({}, 2), "b/data.pkl": pickle.dumps({}, 2)}),
        "one top folder",
    ),
    "zip bomb": (
        lambda: zip_bytes({"net/data.pkl": bytes(30_000_000)}, zipfile.ZIP_DEFLATED),
        "declares 30,000,000 bytes of content in a file of 29,",
    ),
    "zip, small and compressed": (
        lambda: zip_bytes({"net/data.pkl": os.urandom(999)}, zipfile.ZIP_DEFLATED),
        "compressed or encrypted: net/data.pkl|declares",
    ),
    "zip, declared size": (
        lambda: patched_sizes(torch_bytes(STATE), (2**32 - 2, 2**32 - 2)),
        "declares 4,29",
    ),
    "safetensors, long header": (
        lambda: header_only(10**15, b'{"a": 1}' + bytes(100)),
        "header declares 1,000,000,000,000,000 bytes",
    ),
    "safetensors, header beyond the end": (
        lambda: header_only(500, b'{"a": 1}'),
        "header declares 500 bytes in a file of 16 bytes",
    ),
    "safetensors, header is no JSON": (lambda: header_only(8, b'{"a": 1!'), "header is not JSON"),
    "safetensors, deep header": (
        lambda: header_only(200_005, b'{"a":' + b"[" * 200_000),
        "header is not JSON",
    ),
    "safetensors, tensor beyond the end": (
        lambda: header_only(
            64, b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'.ljust(64) + bytes(4)
        ),
        "cannot be read",
    ),
    "safetensors, wrong size": (
        lambda: header_only(
            64, b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,16]}}'.ljust(64) + bytes(16)
        ),
        "cannot be read",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_impossible_containers(name: str, tmp_path: Path) -> None:
    content, said = HOSTILE[name]
    path = tmp_path / "model.pt"
    path.write_bytes(content())
    with pytest.raises(LoadError, match=said) as caught:
        load(path, arch="zoo:efficientnet_lite0")
    assert caught.value.hint
    assert sorted(tmp_path.iterdir()) == [path]


def test_two_members_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", pickle.dumps({}, 2))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("net/data.pkl", pickle.dumps([], 2))
    with pytest.raises(LoadError, match=r"two members of the same name: net/data\.pkl"):
        load(path)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_absurd_tensor_size_is_not_allocated(legacy: bool, tmp_path: Path) -> None:
    class Absurd:
        """Stands for a storage of four terabytes."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            size = ("storage", torch.FloatStorage, "0", "cpu", 10**12)
            return None if not isinstance(obj, Absurd) else (*size, None) if legacy else size

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"w": Absurd()})
    path = tmp_path / "model.pt"
    if legacy:
        pickles = legacy_pickles({})
        path.write_bytes(b"".join([*pickles[:3], buffer.getvalue(), pickles[4]]))
    else:
        path.write_bytes(zip_bytes({"net/data.pkl": buffer.getvalue(), "net/data/0": bytes(8)}))
    with pytest.raises(LoadError, match="declares tensors of 1,000,000,000,000 elements"):
        load(path, arch="zoo:efficientnet_lite0")


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
