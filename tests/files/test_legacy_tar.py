"""torch's tar format: rebuilt here, and compared with torch's own reader."""

from __future__ import annotations

import collections
import io
import pickle
import struct
import tarfile
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the host part needs the extra 'torch'")

from edgekit.errors import LoadError, UnsafeFileError  # noqa: E402
from edgekit.files.legacy_tar import read_legacy_tar  # noqa: E402
from edgekit.loading import load  # noqa: E402
from edgekit.options import parse_input  # noqa: E402


class Kind:
    """Pickles as the name of one of torch's types."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> str:
        return self.name


def dumps(value: object) -> bytes:
    """A pickle of protocol 2, as torch 0.1 wrote them; types by their old names."""

    class Pickler(pickle._Pickler):  # the one that can be extended
        def save(self, obj: object, save_persistent_id: bool = True) -> None:
            if isinstance(obj, Kind):
                self.write(f"ctorch\n{obj.name}\n".encode())
            elif isinstance(obj, Stored):
                self.write(b"P" + str(obj.key).encode() + b"\n")
            else:
                super().save(obj, save_persistent_id)

    stream = io.BytesIO()
    Pickler(stream, 2).dump(value)
    return stream.getvalue()


class Stored:
    """A tensor of the file, by its key."""

    def __init__(self, key: int) -> None:
        self.key = key


WEIGHT = torch.arange(12.0).reshape(3, 4)
BIAS = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)


def tar_file(**changed: bytes) -> bytes:
    """A file with two storages, a view of one of them, and two tensors; one is transposed."""
    storages = dumps(2)
    storages += dumps((1, "cpu", Kind("FloatStorage"))) + struct.pack("<q", 12)
    storages += WEIGHT.numpy().tobytes()
    storages += dumps((2, "cuda:0", Kind("DoubleStorage"))) + struct.pack("<q", 5)
    storages += torch.tensor([9.0, 1, 2, 3, 9], dtype=torch.float64).numpy().tobytes()
    storages += dumps([(3, 2, 1, 3)])
    tensors = dumps(2)
    tensors += dumps((10, 1, Kind("FloatTensor"))) + struct.pack("<i4x5q", 2, 4, 3, 1, 4, 0)
    tensors += dumps((11, 3, Kind("DoubleTensor"))) + struct.pack("<i4x3q", 1, 3, 1, 0)
    value = collections.OrderedDict([("weight", Stored(10)), ("bias", Stored(11))])
    members = {"storages": storages, "tensors": tensors, "pickle": dumps(value)} | changed
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in {"sys_info": dumps({}), **members}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_same_tensors_as_torch_itself(tmp_path: Path) -> None:
    got = read_legacy_tar(tar_file(), "f")
    (tmp_path / "model.pt").write_bytes(tar_file())
    # The second storage was on a GPU that is not here, so torch is told where to put it.
    expected = torch.load(tmp_path / "model.pt", map_location="cpu", weights_only=False)
    assert isinstance(got, dict)
    assert list(got) == list(expected) == ["weight", "bias"]
    for name in got:
        assert torch.equal(got[name], expected[name])
    assert torch.equal(got["weight"], WEIGHT.reshape(-1).as_strided((4, 3), (1, 4)))
    assert torch.equal(got["bias"], BIAS)


def test_network_is_loaded_from_it(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(tar_file(pickle=dumps({"weight": Stored(10), "bias": Stored(11)})))
    arch = "torch.nn:Linear(3, 4)"
    with pytest.raises(LoadError, match=r"bias: expected shape 4, got 3"):
        load(path, arch=arch, inputs=[parse_input("1x3")])
    path.write_bytes(tar_file(pickle=dumps({"weight": Stored(10)})))
    loaded = load(path, arch="torch.nn:Linear(3, 4, bias=False)", inputs=[parse_input("1x3")])
    assert torch.equal(loaded.module.weight, WEIGHT.reshape(-1).as_strided((4, 3), (1, 4)))


@pytest.mark.parametrize("cut", [100, 600, 1100, 2000, 2600])
def test_damaged(cut: int) -> None:
    with pytest.raises(LoadError, match=r"torch 0\.1 tar file that cannot be read") as caught:
        read_legacy_tar(tar_file()[:cut], "f")
    assert caught.value.hint


def test_class_of_another_module() -> None:
    content = tar_file(pickle=b"\x80\x02cfractions\nFraction\nK\x01\x85R.")
    with pytest.raises(UnsafeFileError, match=r"would import fractions\.Fraction; nothing was run"):
        read_legacy_tar(content, "f")


def test_class_that_the_first_lock_does_not_see() -> None:
    # Protocol 0 has no mark by which the scan of the whole file finds a pickle.
    content = tar_file(pickle=b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(LoadError, match=r"it asks for os\.system"):
        read_legacy_tar(content, "f")
