"""Sets of inputs as files: what is written, and what is read or refused."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekit.errors import CalibrationError, EdgekitError, LoadError, OutputError
from edgekit.synthetic import SyntheticSet, load_synthetic, save_synthetic
from edgekit.types import InputSpec

IMAGE = (InputSpec("image", (1, 3, 4, 5)),)
ARRAYS: dict[str, Any] = {"image": np.ones((6, 3, 4, 5), np.float32)}


def made(labels: bool = True) -> SyntheticSet:
    draws = torch.Generator().manual_seed(0)
    return SyntheticSet(
        (torch.randn(6, 3, 4, 5, generator=draws), torch.arange(6)),
        torch.tensor([0, 1, 2, 0, 1, 2]) if labels else None,
        "distill",
        {"seed": 3, "history": [1.5, 0.5]},
        ("a note",),
    )


SPECS = (InputSpec("image", (1, 3, 4, 5)), InputSpec("ids", (1,), "int64"))


@pytest.mark.parametrize("labels", [True, False])
def test_round_trip(labels: bool, tmp_path: Path) -> None:
    path, written = tmp_path / "calib.npz", made(labels)
    save_synthetic(written, SPECS, path, {"model_sha256": "abc"})
    found = load_synthetic(path, SPECS)
    assert all(torch.equal(a, b) for a, b in zip(found.inputs, written.inputs, strict=True))
    if labels:
        assert torch.equal(found.labels, written.labels)  # type: ignore[arg-type]
    else:
        assert found.labels is None
    assert (found.engine, dict(found.facts)) == ("distill", {"seed": 3, "history": [1.5, 0.5]})
    assert found.notes == ("inputs of 'calib.npz', made by distill",)
    assert [file.name for file in tmp_path.iterdir()] == ["calib.npz"]


def test_any_program_can_open_the_file(tmp_path: Path) -> None:
    path = tmp_path / "calib.npz"
    save_synthetic(made(), SPECS, path, {"model_sha256": "abc"})
    with np.load(path, allow_pickle=False) as archive:
        assert set(archive.files) == {"image", "ids", "labels", "manifest"}
        assert archive["image"].dtype == np.float32
        assert archive["labels"].dtype == np.int64
        manifest = json.loads(str(archive["manifest"]))
    assert manifest["schema_version"] == 1
    assert (manifest["engine"], manifest["samples"]) == ("distill", 6)
    assert manifest["inputs"] == [spec.to_dict() for spec in SPECS]
    assert manifest["model_sha256"] == "abc"
    assert manifest["facts"]["seed"] == 3


@pytest.mark.parametrize("name", ["labels", "manifest", "file", "allow_pickle", "arr_0", "a.b/c"])
def test_inputs_may_have_any_name(name: str, tmp_path: Path) -> None:
    """Such as those that the format or NumPy's writer has a meaning for."""
    path, specs = tmp_path / "calib.npz", (InputSpec(name, (1, 3, 4, 5)), SPECS[1])
    save_synthetic(made(), specs, path, {})
    found = load_synthetic(path, specs)
    assert torch.equal(found.inputs[0], made().inputs[0])
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert found.engine == "distill"


def test_batches_hold_every_sample_once() -> None:
    batches = list(made().batches(4))
    assert [len(image) for image, _ in batches] == [4, 2]
    assert torch.cat([ids for _, ids in batches]).tolist() == list(range(6))
    assert len(made()) == 6


def test_arrays_from_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, **ARRAYS, labels=np.array(["cat"] * 6), something=np.zeros(3))
    found = load_synthetic(path, IMAGE)
    assert (found.engine, found.labels, dict(found.facts)) == ("file", None, {})
    assert found.notes == ("inputs of 'mine.npz', of unknown origin",)
    assert torch.equal(found.inputs[0], torch.ones(6, 3, 4, 5))


def test_variable_axes_may_have_any_size(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, **ARRAYS)
    found = load_synthetic(path, (InputSpec("image", (1, 3, 9, 5), variable_axes=(2,)),))
    assert found.inputs[0].shape == (6, 3, 4, 5)


OURS = {**ARRAYS, "manifest": np.array('{"schema_version": 1}')}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"x": ARRAYS["image"]}, "has no array 'image' (it has x)"),
    "shape": ({"image": np.ones((6, 3, 5, 5), np.float32)}, "float32[6, 3, 5, 5], the network"),
    "rank": ({"image": np.ones((3, 4, 5), np.float32)}, "float32[3, 4, 5], the network"),
    "dtype": ({"image": np.ones((6, 3, 4, 5))}, "float64[6, 3, 4, 5], the network"),
    "bytes": ({"image": np.ones((6, 3, 4, 5), np.uint8)}, "takes float32['N', 3, 4, 5]"),
    "order": ({"image": np.ones((6, 3, 4, 5), ">f4")}, "the network takes float32"),
    "empty": ({"image": np.ones((0, 3, 4, 5), np.float32)}, "[0] samples"),
    "nan": ({"image": np.full((6, 3, 4, 5), np.nan, np.float32)}, "holds NaN or infinity"),
    "infinity": ({"image": np.full((6, 3, 4, 5), np.inf, np.float32)}, "holds NaN or infinity"),
    "labels": ({**OURS, "labels": np.array(["a"] * 6)}, "'labels'"),
    "few labels": ({**OURS, "labels": np.arange(5)}, "'labels'"),
    "manifest": ({**ARRAYS, "manifest": np.array("{")}, "'manifest'"),
    "list": ({**ARRAYS, "manifest": np.array("[1]")}, "'manifest'"),
    "facts": ({**ARRAYS, "manifest": np.array('{"facts": 3}')}, "'manifest'"),
    "version": ({**ARRAYS, "manifest": np.array('{"schema_version": 9}')}, "version 9"),
}


@pytest.mark.parametrize("name", WRONG)
def test_arrays_that_do_not_fit(name: str, tmp_path: Path) -> None:
    arrays, said = WRONG[name]
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays)
    with pytest.raises(CalibrationError) as caught:
        load_synthetic(path, IMAGE)
    assert said in caught.value.message
    assert str(path) in caught.value.message


def test_inputs_of_unequal_length(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, **ARRAYS, ids=np.arange(5))
    with pytest.raises(CalibrationError, match=r"\[6, 5\] samples"):
        load_synthetic(path, SPECS)


def an_object(path: Path) -> None:
    np.savez(path, image=np.array([{"a": 1}] * 6, dtype=object))


def a_plain_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, ARRAYS["image"])


def cut(path: Path) -> None:
    np.savez_compressed(path, **ARRAYS)
    path.write_bytes(path.read_bytes()[:-60])


def overwritten(path: Path) -> None:
    np.savez_compressed(path, image=np.random.default_rng(0).random((6, 3, 4, 5), np.float32))
    data = bytearray(path.read_bytes())
    data[200:600] = bytes(255 - byte for byte in data[200:600])
    path.write_bytes(data)


def other_members(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image.npy", "this is text")


UNREADABLE: dict[str, Callable[[Path], object]] = {
    "pickled": lambda path: path.write_bytes(pickle.dumps({"image": ARRAYS["image"]})),
    "object": an_object,
    "plain array": a_plain_array,
    "text": lambda path: path.write_text("no arrays"),
    "empty": lambda path: path.write_bytes(b""),
    "cut off": cut,
    "overwritten": overwritten,
    "other members": other_members,
    "folder": lambda path: path.mkdir(),
    "absent": lambda path: None,
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_files_that_hold_no_arrays(name: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    UNREADABLE[name](path)
    with pytest.raises(EdgekitError) as caught:
        load_synthetic(path, IMAGE)
    assert isinstance(caught.value, (LoadError, CalibrationError))
    assert str(path) in caught.value.message
    assert "edgekit synthesize" in caught.value.hint or "name each array" in caught.value.hint


def test_nothing_is_run_by_opening(tmp_path: Path) -> None:
    path, told = tmp_path / "mine.npz", tmp_path / "told"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (told,))

    np.savez(path, image=np.array([Bomb()], dtype=object))
    with pytest.raises(LoadError, match="without pickling"):
        load_synthetic(path, IMAGE)
    assert not told.exists()


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        save_synthetic(made(), SPECS, tmp_path / "no" / "calib.npz", {})
    assert list(tmp_path.iterdir()) == []
