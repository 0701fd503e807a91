"""Training checkpoints: which set of weights is taken, and what is said about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the host part needs the extra 'torch'")

from torch import Tensor  # noqa: E402

from edgekit.errors import ConfigError, LoadError  # noqa: E402
from edgekit.loading import LoadedModel, load  # noqa: E402
from edgekit.options import parse_input  # noqa: E402

ARCH = "torch.nn:Linear(3, 2)"
INPUT = parse_input("1x3")
OTHER = {"weight": torch.zeros(7, 7)}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def weights(fill: float) -> dict[str, Tensor]:
    return {"weight": torch.full((2, 3), float(fill)), "bias": torch.full((2,), float(fill))}


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def opened(value: object, wanted: str | None = None) -> LoadedModel:
    torch.save(value, "model.pt")
    return load("model.pt", arch=ARCH, inputs=[INPUT], weights=wanted)


def taken(loaded: LoadedModel) -> float:
    """The number that all weights of the chosen set hold."""
    values = {float(v) for t in loaded.module.state_dict().values() for v in t.view(-1)}
    assert len(values) == 1
    return values.pop()


# What a trainer wrote -> the note that tells what was taken.
CHECKPOINTS: dict[str, tuple[Any, str]] = {
    "state_dict": (
        {"epoch": 3, "state_dict": weights(1), "optimizer": {"state": {0: {"m": torch.zeros(1)}}}},
        "taken from 'state_dict'",
    ),
    "model": ({"model": weights(1), "ema": None}, "taken from 'model'"),
    "odd key": ({"it's": weights(1)}, "taken from 'it's'"),
    "two levels": ({"a": {"b": {"net": weights(1)}}}, "taken from 'a/b/net'"),
    "DataParallel": (prefixed("module.", weights(1)), "without the 'module.' before their names"),
    "torch.compile": (prefixed("_orig_mod.", weights(1)), "without the '_orig_mod.' before"),
    "nested prefix": (prefixed("net.model.", weights(1)), "without the 'net.model.' before"),
    "Lightning": (
        {
            "pytorch-lightning_version": "2",
            "state_dict": {**prefixed("model.", weights(1)), "loss.weight": torch.zeros(4)},
            "hyper_parameters": {"lr": 0.1},
        },
        "taken from 'state_dict', without the 'model.' before their names, without 1 tensors of",
    ),
    "averaged": (
        {"n_averaged": torch.tensor(9), **prefixed("module.", weights(1))},
        "without the 'module.' before their names, without 1 tensors",
    ),
    "other networks beside it": (
        {"discriminator": OTHER, "generator": weights(1)},
        "taken from 'generator'",
    ),
    "averaged by another trainer": (
        {"model": OTHER, "ema": {"module": weights(1), "decay": 0.99}},
        "taken from 'ema/module'",
    ),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_one_set_that_fits_is_taken_and_named(name: str) -> None:
    value, said = CHECKPOINTS[name]
    loaded = opened(value)
    assert taken(loaded) == 1
    assert said in loaded.notes[0]
    assert loaded.notes[0].startswith("the weights are ")
    assert loaded.source == "state_dict"


def test_plain_state_dict_needs_no_note() -> None:
    assert opened(weights(1)).notes == ("the task is not stated: taken as classification",)


TWO = {"model": weights(1), "ema": weights(2), "epoch": 9}


def test_two_sets_that_fit_are_asked_about() -> None:
    with pytest.raises(ConfigError, match=r"several sets of weights .*: model, ema$") as caught:
        opened(TWO)
    assert caught.value.hint == "choose one, for example: --weights ema"


@pytest.mark.parametrize(("wanted", "number"), [("model", 1), ("ema", 2)])
def test_choice(wanted: str, number: float) -> None:
    loaded = opened(TWO, wanted)
    assert taken(loaded) == number
    assert f"taken from '{wanted}'" in loaded.notes[0]


def test_two_prefixes() -> None:
    value = {"state_dict": {**prefixed("model.", weights(1)), **prefixed("ema_model.", weights(2))}}
    with pytest.raises(ConfigError, match=r"state_dict:model\., state_dict:ema_model\.$"):
        opened(value)
    assert taken(opened(value, "state_dict:ema_model.")) == 2
    assert taken(opened(value, "state_dict:model")) == 1
    with pytest.raises(ConfigError, match="several sets of weights"):
        opened(value, "state_dict")


def test_two_prefixes_at_the_top() -> None:
    value = {**prefixed("student.", weights(1)), **prefixed("teacher.", weights(2))}
    assert taken(opened(value, "teacher.")) == 2


def test_equal_sets_are_one() -> None:
    assert taken(opened({"state_dict": weights(1), "best": weights(1)})) == 1


def test_unknown_choice() -> None:
    with pytest.raises(ConfigError, match="has no set of weights named 'swa'") as caught:
        opened(TWO, "swa")
    assert caught.value.hint == "it has: model, ema"
    with pytest.raises(ConfigError, match="has no set of weights named 'ema'") as caught:
        opened(weights(1), "ema")
    assert "leave out --weights" in caught.value.hint


def test_chosen_set_that_does_not_fit() -> None:
    with pytest.raises(LoadError, match=r"read as 'b'\) does not fit .* 1 missing \(bias\)"):
        opened({"a": weights(1), "b": OTHER}, "b")


def test_closest_set_is_compared() -> None:
    near = {"weight": torch.zeros(2, 3)}
    with pytest.raises(LoadError, match=r"\(read as 'b'\) does not fit .*: 1 missing \(bias\)$"):
        opened({"a": OTHER, "b": near})


def test_without_arch_the_sets_are_named() -> None:
    torch.save(TWO, "model.pt")
    with pytest.raises(ConfigError, match=r"holds weights only \(under model, ema\); --arch"):
        load("model.pt")


def test_edgekit_checkpoint_has_one_set(tmp_path: Path) -> None:
    from edgekit.checkpoint import save_checkpoint
    from edgekit.types import InputSpec

    save_checkpoint(
        tmp_path / "model.pt",
        arch="zoo:efficientnet_lite0",
        state_dict={"a": torch.zeros(1)},
        inputs=[InputSpec("x", (1, 3, 8, 8))],
    )
    with pytest.raises(ConfigError, match="has one set of weights"):
        load(tmp_path / "model.pt", weights="ema")


def test_names_that_end_alike_are_not_a_prefix() -> None:
    # 'xweight' ends with the network's first name, but no dot stands before it.
    with pytest.raises(LoadError, match="does not fit"):
        opened({"xweight": torch.zeros(2, 3), "xbias": torch.zeros(2)})


def test_network_without_weights() -> None:
    torch.save({"a": torch.zeros(1)}, "model.pt")
    with pytest.raises(LoadError, match="1 unexpected"):
        load("model.pt", arch="torch.nn:ReLU", inputs=[INPUT])
