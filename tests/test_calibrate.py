"""Which calibration is chosen, and that what it made can be handed on and come back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import edgekit
from edgekit.calibrate import (
    ENGINE_OF,
    calibrate,
    check_calibration,
    choose,
    samples_of,
    synthesizer,
)
from edgekit.calibration import _budget
from edgekit.calibration.clusterq import ClusterQ
from edgekit.calibration.distill import Distill
from edgekit.capture import CapturedModel, capture
from edgekit.errors import CalibrationError, ConfigError, LoadError
from edgekit.options import InputOption
from edgekit.passes.unpinned import unpinned
from edgekit.quant.statistics import Statistics
from edgekit.registry import SYNTHESIZERS
from edgekit.synthetic import save_synthetic
from edgekit.types import Effort, InputSpec, Preprocessing, Task


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_budget, "_ROUNDS", (3, 3))


@pytest.fixture(scope="module")
def model() -> CapturedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 4),
        )
        module(torch.randn(32, 3, 8, 8))
    specs = [InputSpec("x", (1, 3, 8, 8))]
    return capture(
        module.eval(), specs, task=Task.CLASSIFICATION, preprocessing=Preprocessing((0.5,), (0.5,))
    )


# -- the choice ---------------------------------------------------------------------------------


def test_auto_takes_the_engine_of_the_effort(model: CapturedModel) -> None:
    assert choose(model, "auto", Effort.INSTANT) == ("renorm", "auto: effort instant takes seconds")
    for effort in (Effort.STANDARD, Effort.BEST):
        assert choose(model, "auto", effort) == (
            ENGINE_OF[effort],
            f"auto: the engine of effort {effort.value}",
        )
        assert ENGINE_OF[effort] in SYNTHESIZERS


def test_a_named_calibration_is_taken_whatever_the_effort(model: CapturedModel) -> None:
    for name in ("renorm", "clusterq", "noise", "images:photos", "calib.npz"):
        assert choose(model, name, Effort.BEST) == (name, "named by --calibration")


@pytest.mark.parametrize("effort", [Effort.STANDARD, Effort.BEST])
def test_auto_falls_back_to_renorm_with_the_reason(effort: Effort) -> None:
    plain = capture(nn.Conv2d(3, 2, 3), [InputSpec("x", (1, 3, 8, 8))])
    name, reason = choose(plain, "auto", effort)
    assert name == "renorm"
    assert reason.startswith("auto: no BatchNorm whose statistics ")
    ids = nn.Sequential(nn.Embedding(7, 5), nn.Flatten(0, 1), nn.BatchNorm1d(5)).eval()
    name, reason = choose(capture(ids, [InputSpec("ids", (1, 3), "int64")]), "auto", effort)
    assert name == "renorm"
    assert reason.startswith("auto: no float input that ")


class Wide(nn.Module):
    """A layer of 3 x 3 x 64 x 64 x 64 x 64 = 151 million multiplications."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


@pytest.mark.parametrize("effort", [Effort.STANDARD, Effort.BEST])
def test_auto_does_not_begin_what_it_cannot_finish(effort: Effort) -> None:
    model = capture(Wide().eval(), [InputSpec("x", (1, 64, 64, 64))])
    name, reason = choose(model, "auto", effort)
    assert name == "renorm"
    assert "on 151 million multiplications a sample" in reason
    assert "--calibration distill tries" in reason


@pytest.mark.usefixtures("few_rounds")
def test_report_says_what_auto_chose_and_why(tiny: Path) -> None:
    del tiny  # the current directory
    pytest.importorskip("onnxruntime", reason="runs the exported file")
    report = edgekit.quantize(
        "tiny.pt",
        out="result",
        arch="tiny:build",
        inputs=[InputOption(None, (1, 3, 32, 32))],
        targets=["onnxruntime"],
    )
    told = report.document["calibration"]
    count = samples_of("distill")
    assert (told["method"], told["samples"]) == ("distill", count)
    assert "calibration distill (auto: the engine of effort standard)" in told["notes"]
    assert any(note.startswith(f"distill: {count} inputs, 3 rounds in ") for note in told["notes"])
    assert (report.recipe.calibration, report.recipe.effort) == ("distill", Effort.STANDARD)
    assert (report.failures, report.shortfalls) == ({}, ())


# -- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nonsense", "unknown calibration 'nonsense'"),
        ("missing.npz", "there is no such file"),
        ("images", "needs one"),
        ("images:nowhere", "is not a folder"),
        ("distill:3", "only 'images' takes an argument"),
        ("renorm:3", "only 'images' takes an argument"),
    ],
)
def test_names_that_cannot_work_are_refused_at_once(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        check_calibration(name)
    assert said in caught.value.message
    if name == "missing.npz":
        assert "edgekit synthesize" in caught.value.hint
    if name == "nonsense":
        assert all(engine in caught.value.hint for engine in ("renorm", *SYNTHESIZERS))


def test_names_that_can_work_pass(tmp_path: Path) -> None:
    (tmp_path / "calib.npz").write_bytes(b"")
    names = ["auto", "renorm", "noise", *SYNTHESIZERS, f"images:{tmp_path}"]
    for name in (*names, str(tmp_path / "calib.npz")):
        check_calibration(name)


def test_engines_take_samples_and_seed() -> None:
    assert synthesizer("distill", 12, 3) == Distill(samples=12, seed=3)
    assert synthesizer("clusterq", 12, 3) == ClusterQ(samples=12, seed=3)


@pytest.mark.parametrize("name", ["noise", "images", "nonsense"])
def test_what_makes_no_inputs_is_no_engine(name: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown engine that makes inputs '{name}'"):
        synthesizer(name, 4, 0)


def test_renorm_is_no_engine_for_others_and_says_why() -> None:
    with pytest.raises(ConfigError, match="only in its own pass") as caught:
        synthesizer("renorm", 4, 0)
    assert all(engine in caught.value.hint for engine in SYNTHESIZERS)


# -- statistics ---------------------------------------------------------------------------------


def same(one: Statistics, two: Statistics) -> bool:
    """Whether every figure of every tensor is the same."""
    if set(one.tensors) != set(two.tensors):
        return False
    for name, first in one.tensors.items():
        second = two.tensors[name]
        plain = ("minimum", "maximum", "rule", "prior", "exact", "margin")
        if any(getattr(first, key) != getattr(second, key) for key in plain):
            return False
        tensors = ("channel_mean", "channel_minimum", "channel_maximum", "values", "channels")
        if not all(torch.equal(getattr(first, k), getattr(second, k)) for k in tensors):
            return False
    return (one.method, one.samples) == (two.method, two.samples)


@pytest.mark.usefixtures("few_rounds")
def test_a_file_gives_the_statistics_of_its_engine(model: CapturedModel, tmp_path: Path) -> None:
    direct = calibrate(model, "distill", samples=40, seed=2)
    made = direct.inputs
    assert made is not None
    save_synthetic(made, model.inputs, tmp_path / "calib.npz", {})
    handed_on = calibrate(model, str(tmp_path / "calib.npz"), samples=64, seed=2)
    assert same(direct, handed_on)
    assert handed_on.inputs is not None  # biases are corrected on it as well
    assert torch.equal(handed_on.inputs.inputs[0], made.inputs[0])
    assert not same(direct, calibrate(model, "distill", samples=40, seed=3))


@pytest.mark.usefixtures("few_rounds")
def test_synthesized_sets_leave_room_behind_the_last_norm(
    model: CapturedModel, tmp_path: Path
) -> None:
    """Arrays of unknown origin may be real data: their ranges stay as they are."""
    direct = calibrate(model, "distill", samples=8, seed=0)
    assert direct.inputs is not None
    save_synthetic(direct.inputs, model.inputs, tmp_path / "calib.npz", {})
    import numpy as np

    np.savez(tmp_path / "mine.npz", x=direct.inputs.inputs[0].numpy())
    plain = calibrate(model, str(tmp_path / "mine.npz"), samples=8, seed=0)
    loose = unpinned(model.graph.graph) & set(direct.tensors)
    assert loose
    for name, tensor in plain.tensors.items():
        wider = direct.tensors[name].maximum > tensor.maximum
        assert wider == (name in loose and tensor.maximum != 0)


def test_file_that_does_not_open(model: CapturedModel, tmp_path: Path) -> None:
    path = tmp_path / "calib.npz"
    path.write_text("nothing")
    with pytest.raises(LoadError, match=r"calib\.npz"):
        calibrate(model, str(path), samples=4, seed=0)


def test_network_that_overflows_is_an_error() -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU())
    with torch.no_grad():
        module[0].weight.fill_(math.inf)  # type: ignore[operator, union-attr]
    model = capture(module, [InputSpec("x", (1, 3, 4, 4))])
    with pytest.raises(CalibrationError, match="is not finite") as caught:
        calibrate(model, "noise", samples=4, seed=0)
    assert "--preprocessing" in caught.value.hint
