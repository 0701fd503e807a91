"""A distillation that was stopped, or killed, continues to the very same inputs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit import checkpointing
from edgekit.calibration import distill
from edgekit.calibration._clusterq_options import Losses
from edgekit.calibration.distill import Distill
from edgekit.capture import CapturedModel, capture
from edgekit.errors import CalibrationError, OutputError
from edgekit.types import InputSpec, Task

ENGINE = Distill(samples=12, batch=6, rounds=12)
CLASSES = Losses(ce=1.0, bns=1.0, sfda=0.5, icv=0.25)


def build() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )
    with torch.no_grad():
        network.train()(1 + torch.randn(32, 3, 8, 8))
    return network.eval()


def network() -> CapturedModel:
    return capture(build(), [InputSpec("x", (1, 3, 8, 8))], task=Task.CLASSIFICATION)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class StopError(Exception):
    """What a user's interruption is to the engine."""


def stopped(engine: Distill, model: CapturedModel, path: Path, after: int) -> None:
    """Run until so many rounds have been told, of which the last is not saved yet."""
    seen: list[str] = []

    def stop(text: str, _fraction: float) -> None:
        seen.append(text)
        if len(seen) == after:
            raise StopError

    with pytest.raises(StopError):
        engine.synthesize(model, checkpoint=path, progress=stop)


@pytest.mark.parametrize(
    ("engine", "after"),
    [
        (ENGINE, 2),
        (ENGINE, 11),
        (replace(ENGINE, swing=True), 6),
        (ENGINE.portable(), 6),
        (replace(ENGINE, losses=CLASSES), 2),  # before class statistics count
        (replace(ENGINE, losses=CLASSES), 8),
    ],
)
def test_stopped_run_continues_to_the_same_inputs(
    engine: Distill, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointing, "_EVERY_SECONDS", -1.0)
    model, path = network(), tmp_path / "state.pt"
    whole = engine.synthesize(model)
    stopped(engine, model, path, after)
    again: list[float] = []
    resumed = engine.synthesize(
        model, checkpoint=path, progress=lambda _text, done: again.append(done)
    )
    assert again[0] == pytest.approx(after / 12)  # nothing that was saved was done twice
    assert torch.equal(resumed.inputs[0], whole.inputs[0])
    assert torch.equal(resumed.labels, whole.labels)  # type: ignore[arg-type]
    for name in ("history", "first_loss", "loss", "rounds", "ended"):
        assert resumed.facts[name] == whole.facts[name]
    again.clear()
    finished = engine.synthesize(
        model, checkpoint=path, progress=lambda _text, done: again.append(done)
    )
    assert not again  # nothing left to do
    assert torch.equal(finished.inputs[0], whole.inputs[0])


SCRIPT = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, {folder!r})
import test_distill_resume as here
from edgekit import checkpointing

torch.set_num_threads(1)
checkpointing._EVERY_SECONDS = -1.0
here.ENGINE.synthesize(
    here.network(), checkpoint=Path({path!r}), progress=lambda text, done: print(done, flush=True)
)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the platform has no kill -9")
def test_killed_run_continues_to_the_same_inputs(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    script = SCRIPT.format(folder=str(Path(__file__).parent), path=str(path))
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert child.stdout is not None
    for _ in range(5):
        child.stdout.readline()
    time.sleep(0.005)  # anywhere in a step or in writing the state
    child.kill()
    child.stdout.close()
    assert child.wait() == -signal.SIGKILL
    model = network()
    told: list[float] = []
    resumed = ENGINE.synthesize(
        model, checkpoint=path, progress=lambda _text, done: told.append(done)
    )
    assert told[0] > 4 / 12
    assert torch.equal(resumed.inputs[0], ENGINE.synthesize(model).inputs[0])


def test_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    engine = replace(ENGINE, rounds=1)
    engine.synthesize(network(), checkpoint=path)
    other = build()
    with torch.no_grad():
        other[0].weight.mul_(1.5)  # type: ignore[operator, union-attr]
    model = capture(other, [InputSpec("x", (1, 3, 8, 8))], task=Task.CLASSIFICATION)
    before = path.read_bytes()
    with pytest.raises(CalibrationError, match="another network") as caught:
        engine.synthesize(model, checkpoint=path)
    assert str(path) in caught.value.message
    assert "--checkpoint" in caught.value.hint
    assert path.read_bytes() == before


@pytest.mark.parametrize("change", [{"seed": 1}, {"samples": 6}, {"lr": 0.2}, {"swing": True}])
def test_checkpoint_of_other_options_is_refused(change: dict[str, int], tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    engine = replace(ENGINE, rounds=1)
    engine.synthesize(network(), checkpoint=path)
    with pytest.raises(CalibrationError, match="another options"):
        replace(engine, **change).synthesize(network(), checkpoint=path)  # type: ignore[arg-type]


def test_damaged_checkpoint_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    engine = replace(ENGINE, rounds=1)
    engine.synthesize(network(), checkpoint=path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CalibrationError, match="cannot be read") as caught:
        engine.synthesize(network(), checkpoint=path)
    assert str(path) in caught.value.message
    assert path.exists()


def test_checkpoint_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        replace(ENGINE, rounds=1).synthesize(network(), checkpoint=tmp_path / "no" / "state.pt")


def short_of_memory(monkeypatch: pytest.MonkeyPatch, largest: int, calls: int = 0) -> None:
    """Let steps with more than ``largest`` inputs fail after ``calls`` steps, as torch does."""
    plain = distill.Distillation._step
    left = [calls]

    def step(self: distill.Distillation, part: int, optimizer: torch.optim.Optimizer) -> float:
        left[0] -= 1
        if len(self._drawn[part][0]) > largest and left[0] < 0:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate ...")
        return plain(self, part, optimizer)

    monkeypatch.setattr(distill.Distillation, "_step", step)


def test_run_with_smaller_batches_can_be_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointing, "_EVERY_SECONDS", -1.0)
    model, path = network(), tmp_path / "state.pt"
    short_of_memory(monkeypatch, 3)
    whole = ENGINE.synthesize(model)
    stopped(ENGINE, model, path, 5)
    resumed = ENGINE.synthesize(model, checkpoint=path)
    assert resumed.facts["batch"] == 3
    assert torch.equal(resumed.inputs[0], whole.inputs[0])


def test_lack_of_memory_later_keeps_what_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others took the memory meanwhile: rounds that are done are not thrown away."""
    monkeypatch.setattr(checkpointing, "_EVERY_SECONDS", -1.0)
    model, path = network(), tmp_path / "state.pt"
    with monkeypatch.context() as patch:
        short_of_memory(patch, 0, calls=8)
        with pytest.raises(CalibrationError, match="memory") as caught:
            ENGINE.synthesize(model, checkpoint=path)
        assert str(path) in caught.value.hint
    resumed = ENGINE.synthesize(model, checkpoint=path)
    assert torch.equal(resumed.inputs[0], ENGINE.synthesize(model).inputs[0])
