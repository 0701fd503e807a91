"""The state of a long run on disk: whole or not at all, and only for the run that wrote it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit import checkpointing
from edgekit.capture import CapturedModel, capture
from edgekit.checkpointing import Checkpoint, run_identity
from edgekit.errors import CalibrationError, OutputError
from edgekit.types import InputSpec

STATE = {"values": [torch.arange(5.0)], "round": 3, "ended": "", "none": None}


@dataclass(frozen=True)
class Options:
    seed: int = 0


def network(scale: float = 1.0, padding: int = 0) -> CapturedModel:
    torch.manual_seed(0)
    module = nn.Conv2d(2, 3, 3, padding=padding)
    with torch.no_grad():
        module.weight.mul_(scale)
    return capture(module, [InputSpec("x", (1, 2, 6, 6))])


def identity(model: CapturedModel | None = None, seed: int = 0) -> dict[str, str]:
    return run_identity(model or network(), Options(seed), torch.device("cpu"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.pt"


def test_state_comes_back(path: Path) -> None:
    assert Checkpoint(path, identity()).load() is None
    Checkpoint(path, identity()).save(STATE)
    found = Checkpoint(path, identity()).load()
    assert found is not None
    assert torch.equal(found.pop("values")[0], torch.arange(5.0))
    assert found == {"round": 3, "ended": "", "none": None}
    assert [file.name for file in path.parent.iterdir()] == ["state.pt"]


def test_identity_is_of_what_decides_the_result() -> None:
    plain = identity()
    assert identity() == plain
    assert identity(network(1.01))["network"] != plain["network"]  # other weights
    assert identity(network(1.0, 1))["network"] != plain["network"]  # another graph
    assert identity(seed=1)["options"] != plain["options"]
    assert {type(value) for value in plain.values()} == {str}
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert identity()["thread count"] != plain["thread count"]
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("key", ["network", "options", "device", "thread count", "torch version"])
def test_other_run_is_refused_by_name(key: str, path: Path) -> None:
    Checkpoint(path, {**identity(), key: "something else"}).save(STATE)
    with pytest.raises(CalibrationError, match=f"another {key}") as caught:
        Checkpoint(path, identity()).load()
    assert str(path) in caught.value.message
    assert "something else" in caught.value.message


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def overwrite(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[: len(data) // 2] = os.urandom(len(data) // 2)
    path.write_bytes(data)


DAMAGES = {
    "cut off": cut,
    "overwritten": overwrite,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not a checkpoint"),
    "a module": lambda path: torch.save(nn.Linear(2, 2), path),
    "weights": lambda path: torch.save(nn.Linear(2, 2).state_dict(), path),
    "a tensor": lambda path: torch.save(torch.zeros(3), path),
    "a list": lambda path: torch.save([1, 2], path),
    "no run": lambda path: torch.save({"identity": 3, "state": {}}, path),
    "no state": lambda path: torch.save({"identity": identity(), "state": 3}, path),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_file_that_is_no_checkpoint_is_refused_and_kept(name: str, path: Path) -> None:
    Checkpoint(path, identity()).save(STATE)
    DAMAGES[name](path)
    before = path.read_bytes()
    with pytest.raises(CalibrationError, match="cannot be read") as caught:
        Checkpoint(path, identity()).load()
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert path.read_bytes() == before


def test_folder_in_the_files_place(path: Path) -> None:
    path.mkdir()
    with pytest.raises(CalibrationError, match="cannot be read"):
        Checkpoint(path, identity()).load()
    with pytest.raises(OutputError, match="cannot be written"):
        Checkpoint(path, identity()).save(STATE)
    assert [file.name for file in path.parent.iterdir()] == ["state.pt"]


def test_failed_write_keeps_the_state_before(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(path, identity())
    checkpoint.save(STATE)

    def full(_descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=os.strerror(28)):
        checkpoint.save({**STATE, "round": 4})
    found = checkpoint.load()
    assert found is not None
    assert found["round"] == 3
    assert [file.name for file in path.parent.iterdir()] == ["state.pt"]


def test_due_after_a_while(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(path, identity())
    assert not checkpoint.due()
    monkeypatch.setattr(checkpointing, "_EVERY_SECONDS", -1.0)
    assert checkpoint.due()


def test_remove_is_content_with_no_file(path: Path) -> None:
    checkpoint = Checkpoint(path, identity())
    checkpoint.save(STATE)
    checkpoint.remove()
    checkpoint.remove()
    assert not path.exists()
