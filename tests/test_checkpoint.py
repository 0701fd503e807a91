from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from edgekit.architecture import Architecture  # noqa: E402
from edgekit.checkpoint import (  # noqa: E402
    Checkpoint,
    is_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from edgekit.errors import ConfigError, LoadError, OutputError, UnsafeFileError  # noqa: E402
from edgekit.types import InputSpec, Preprocessing, Task  # noqa: E402

STATE = {"a": torch.arange(3.0), "b": torch.tensor(2)}
INPUTS = (InputSpec("image", (1, 3, 8, 8), variable_axes=(2, 3)), InputSpec("ids", (1, 4), "int64"))
PREPROCESSING = Preprocessing((0.5,), (0.25,), 10, 8, 255, "bgr")


def save(path: Path) -> Path:
    return save_checkpoint(
        path,
        arch="zoo:efficientnet_lite0(num_classes=10)",
        state_dict=STATE,
        inputs=INPUTS,
        preprocessing=PREPROCESSING,
        task=Task.EMBEDDING,
        num_classes=10,
    )


@pytest.fixture
def fields(tmp_path: Path) -> dict[str, Any]:
    """What a checkpoint file holds, as torch itself reads it."""
    value: dict[str, Any] = torch.load(save(tmp_path / "model.pt"), weights_only=True)
    return value


def test_round_trip(fields: dict[str, Any]) -> None:
    assert is_checkpoint(fields)
    checkpoint = read_checkpoint(fields)
    assert checkpoint == Checkpoint(
        Architecture("zoo", "efficientnet_lite0", (), (("num_classes", 10),)),
        checkpoint.state_dict,
        INPUTS,
        PREPROCESSING,
        Task.EMBEDDING,
        10,
    )
    assert checkpoint.state_dict.keys() == STATE.keys()
    assert all(torch.equal(checkpoint.state_dict[name], STATE[name]) for name in STATE)


def test_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    assert save(tmp_path / "a.pt").read_bytes() == save(tmp_path / "b.pt").read_bytes()


def test_saving_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")
    save(path)
    assert is_checkpoint(torch.load(path, weights_only=True))
    assert sorted(tmp_path.iterdir()) == [path]
    # As any other new file: readable by whom the user's umask allows.
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("place", ["missing/model.pt", "file/model.pt", "folder"])
def test_unwritable_place(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OutputError, match="cannot be written"):
        save(tmp_path / place)
    assert sorted(tmp_path.iterdir()) == before


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    # The device refuses every byte, as a full disk does; only the opening is redirected to it.
    original = Path.open
    monkeypatch.setattr(Path, "open", lambda _self, _mode: original(full, "wb"))
    with pytest.raises(OutputError, match="No space left on device"):
        save(tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []


def test_only_zoo_networks_are_saved(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only name a network of the zoo, not 'my_net:build'"):
        save_checkpoint(tmp_path / "model.pt", arch="my_net:build", state_dict=STATE, inputs=INPUTS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "value", [None, [], {}, {"format": "other"}, {"format": torch.zeros(2)}, {"state_dict": {}}]
)
def test_other_content_is_no_checkpoint(value: object) -> None:
    assert not is_checkpoint(value)
    with pytest.raises(LoadError, match="is not an edgekit checkpoint"):
        read_checkpoint(value)


@pytest.mark.parametrize(
    "version", [0, 2, "1", None, True, 1.0, torch.tensor(1)], ids=lambda v: type(v).__name__
)
def test_other_versions(fields: dict[str, Any], version: object) -> None:
    with pytest.raises(LoadError, match="this edgekit reads version 1"):
        read_checkpoint(fields | {"version": version})


def test_unknown_and_missing_fields(fields: dict[str, Any]) -> None:
    with pytest.raises(LoadError, match="with unknown keys: epoch, optimizer"):
        read_checkpoint(fields | {"epoch": 3, "optimizer": {}})
    del fields["task"], fields["inputs"]
    with pytest.raises(LoadError, match="with no inputs, task"):
        read_checkpoint(fields)


IMAGE = {"name": "x", "shape": [1, 3, 8, 8]}


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("arch", 3, "'arch' must be a str, not 3"),
        ("arch", "zoo:", "'arch': --arch 'zoo:'"),
        ("arch", "zoo:net(exit())", "'arch'.*is not a literal"),
        ("state_dict", [], "'state_dict' must be a dict"),
        ("state_dict", {}, "'state_dict' has no tensors"),
        ("state_dict", {"a": 1, 2: STATE["a"]}, "'state_dict' has entries.*: a, 2"),
        ("inputs", [], "'inputs' must be a list of"),
        ("inputs", IMAGE, "'inputs' must be a list, not"),
        ("inputs", [{"name": "x"}], "'inputs' must be a list of"),
        ("inputs", [IMAGE | {"shape": "1x3"}], "'inputs' must be a list of"),
        ("inputs", [IMAGE | {"shape": [1, True]}], "'inputs' must be a list of"),
        ("inputs", [IMAGE | {"shape": [1, 0]}], "'inputs': input 'x': shape"),
        ("inputs", [IMAGE | {"dtype": "float64"}], "'inputs': input 'x': dtype 'float64'"),
        ("inputs", [IMAGE | {"variable_axes": [7]}], "'inputs': input 'x': variable axes"),
        ("inputs", [IMAGE | {"layout": "NCHW"}], "'inputs': input: unknown key 'layout'"),
        ("inputs", [IMAGE | {3: 4}], "'inputs' must be a list of"),
        ("preprocessing", [], "'preprocessing' must be a dict"),
        ("preprocessing", {"mean": 0.5}, "'preprocessing' must be"),
        ("preprocessing", {"mean": [math.nan]}, "'preprocessing' must be"),
        ("preprocessing", {"std": [0.0]}, "preprocessing: std .* must be positive"),
        ("preprocessing", {"crop": "224"}, "'preprocessing' must be"),
        ("preprocessing", {"range": 1.0}, "'preprocessing' must be"),
        ("preprocessing", {"color": "cmyk"}, "color is rgb, bgr or gray"),
        ("preprocessing", {"resize": 8, "blur": 1}, "unknown key 'blur'"),
        ("preprocessing", {1: 1}, "'preprocessing' must be"),
        ("task", "detection", "'task' must be one of classification, embedding"),
        ("task", None, "'task' must be a str"),
        ("num_classes", 0, "'num_classes' must be a number"),
        ("num_classes", True, "'num_classes' must be a number"),
        ("num_classes", "ten", "'num_classes' must be a number of classes or nothing, not 'ten'"),
    ],
)
def test_wrong_fields(fields: dict[str, Any], field: str, value: object, said: str) -> None:
    with pytest.raises(LoadError, match=said) as caught:
        read_checkpoint(fields | {field: value}, "model.pt")
    assert caught.value.message.startswith("model.pt: ")
    assert caught.value.hint


@pytest.mark.parametrize("arch", ["os:system", "module:factory", "efficientnet_lite0", " zoo:x"])
def test_code_outside_of_the_zoo_is_refused(fields: dict[str, Any], arch: str) -> None:
    with pytest.raises(UnsafeFileError, match=f"asks to import and call '{arch}'"):
        read_checkpoint(fields | {"arch": arch})
