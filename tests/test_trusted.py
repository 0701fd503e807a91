"""Files that run code when opened: refused with the list of what they import, accepted by flag."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the host part needs the extra 'torch'")

from torch import nn  # noqa: E402

from edgekit.errors import ConfigError, LoadError, UnsafeFileError  # noqa: E402
from edgekit.loading import load  # noqa: E402
from edgekit.options import parse_input  # noqa: E402
from edgekit.types import InputSpec  # noqa: E402

MODULE = "net_of_test_trusted"
SOURCE = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 2)

    def forward(self, features):
        return self.head(self.norm(features))

class Settings:
    lr = 0.1
"""
INPUT = parse_input("1x3")
X = torch.linspace(-1, 1, 6).reshape(2, 3)


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The user's own module in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    Path(f"{MODULE}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return __import__(MODULE)


@pytest.fixture
def network(module: Any) -> nn.Module:
    net: nn.Module = module.Net()
    net(X * 3)
    return net.eval()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_pickled_network_is_refused_with_what_it_imports(legacy: bool, network: nn.Module) -> None:
    torch.save(network, "net.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UnsafeFileError, match="holds a whole pickled network") as caught:
        load("net.pt", inputs=[INPUT])
    for name in (f"{MODULE}.Net", "torch.nn.modules.batchnorm.BatchNorm1d", "nothing was run"):
        assert name in caught.value.message
    assert "--trust-pickle" in caught.value.hint
    assert "state_dict(), 'weights.pt')" in caught.value.hint


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_pickled_network_is_accepted_by_flag(legacy: bool, network: nn.Module) -> None:
    torch.save(network.train(), "net.pt", _use_new_zipfile_serialization=not legacy)
    loaded = load("net.pt", inputs=[INPUT], trust_pickle=True)
    assert torch.equal(loaded.module(X), network.eval()(X))
    assert not loaded.module.training
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())
    assert (loaded.source, loaded.arch) == ("pickled_network", f"{MODULE}:Net")
    assert loaded.inputs == (InputSpec("features", (1, 3)),)
    assert "the file was trusted" in " ".join(loaded.notes)


def test_class_is_imported_from_the_current_directory(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(network, "net.pt")
    monkeypatch.delitem(sys.modules, MODULE)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(Path.cwd()))])
    assert load("net.pt", inputs=[INPUT], trust_pickle=True).arch == f"{MODULE}:Net"


def test_class_that_is_not_here(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(network, "net.pt")
    monkeypatch.delitem(sys.modules, MODULE)
    Path(f"{MODULE}.py").unlink()
    with pytest.raises(ConfigError, match=f"No module named '{MODULE}'") as caught:
        load("net.pt", inputs=[INPUT], trust_pickle=True)
    assert "can be imported" in caught.value.hint


def test_wrappers_are_taken_off(network: nn.Module) -> None:
    torch.save(nn.DataParallel(network), "net.pt")
    loaded = load("net.pt", inputs=[INPUT], trust_pickle=True)
    assert type(loaded.module) is type(network)


def test_network_in_a_training_checkpoint(network: nn.Module, module: Any) -> None:
    torch.save({"epoch": 1, "model": network, "args": module.Settings()}, "net.pt")
    loaded = load("net.pt", inputs=[INPUT], trust_pickle=True)
    assert torch.equal(loaded.module(X), network(X))
    assert "taken from 'model'" in loaded.notes[0]


def test_two_networks_are_asked_about(network: nn.Module, module: Any) -> None:
    torch.save({"model": network, "ema": module.Net()}, "net.pt")
    with pytest.raises(ConfigError, match="holds several networks: model, ema") as caught:
        load("net.pt", inputs=[INPUT], trust_pickle=True)
    assert caught.value.hint == "choose one, for example: --weights ema"
    loaded = load("net.pt", inputs=[INPUT], trust_pickle=True, weights="model")
    assert torch.equal(loaded.module(X), network(X))


def test_weights_of_a_trusted_checkpoint(network: nn.Module, module: Any) -> None:
    torch.save({"state_dict": network.state_dict(), "args": module.Settings()}, "net.pt")
    arch = f"{MODULE}:Net"
    with pytest.raises(UnsafeFileError, match=f"would import {MODULE}.Settings; nothing was run"):
        load("net.pt", arch=arch, inputs=[INPUT])
    loaded = load("net.pt", arch=arch, inputs=[INPUT], trust_pickle=True)
    assert torch.equal(loaded.module(X), network(X))
    # The network itself has the same weights, for one that --arch builds.
    torch.save(network, "net.pt")
    loaded = load("net.pt", arch=arch, inputs=[INPUT], trust_pickle=True)
    assert torch.equal(loaded.module(X), network(X))


def test_bare_pickle(network: nn.Module) -> None:
    Path("net.pkl").write_bytes(pickle.dumps(network))
    with pytest.raises(UnsafeFileError, match="is a bare pickle that would import"):
        load("net.pkl", inputs=[INPUT])
    loaded = load("net.pkl", inputs=[INPUT], trust_pickle=True)
    assert torch.equal(loaded.module(X), network(X))


def test_trust_is_not_used_where_it_is_not_needed(network: nn.Module) -> None:
    torch.save(network.state_dict(), "net.pt")
    loaded = load("net.pt", arch=f"{MODULE}:Net", inputs=[INPUT], trust_pickle=True)
    assert "trusted" not in " ".join(loaded.notes)


def test_trust_does_not_mend_a_damaged_file(network: nn.Module) -> None:
    torch.save(network, "net.pt")
    Path("net.pt").write_bytes(Path("net.pt").read_bytes()[:-200])
    with pytest.raises(LoadError, match="damaged or cut off"):
        load("net.pt", inputs=[INPUT], trust_pickle=True)


def test_code_that_fails_is_the_users_error() -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return int, ("no number",)

    torch.save({"a": Bomb()}, "net.pt")
    with pytest.raises(ConfigError, match=r"opening the trusted file failed.*ValueError"):
        load("net.pt", trust_pickle=True)


def test_commands_get_no_advice_to_trust_them() -> None:
    import os

    class Command:
        def __reduce__(self) -> Any:
            return os.system, ("true",)

    torch.save({"a": Command()}, "net.pt")
    with pytest.raises(UnsafeFileError, match=r"posix\.system; nothing was run") as caught:
        load("net.pt")
    assert "no network needs that" in caught.value.hint
    assert "--trust-pickle" not in caught.value.hint


def test_exported_program_with_an_object_of_its_own() -> None:
    import io
    import zipfile

    program = torch.export.export(nn.Linear(3, 2), (torch.zeros(2, 3),))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    with zipfile.ZipFile(buffer) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    inputs = io.BytesIO()
    torch.save(((torch.zeros(2, 3), Path("note")), {}), inputs)
    with zipfile.ZipFile("net.pt2", "w") as archive:
        for name, content in members.items():
            sample = name.endswith("sample_inputs/model.pt")
            archive.writestr(name, inputs.getvalue() if sample else content)
    with pytest.raises(UnsafeFileError, match=r"would import pathlib\.\w+; nothing was run"):
        load("net.pt2")
    loaded = load("net.pt2", trust_pickle=True)
    assert loaded.inputs == (InputSpec("input", (2, 3)),)
    assert loaded.source == "exported_program"
