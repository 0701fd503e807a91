"""A run that was stopped, or killed, continues to the very same images."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit import checkpointing
from edgekit.calibration.clusterq import ClusterQ, Making, Schedule
from edgekit.capture import CapturedModel, capture
from edgekit.errors import CalibrationError
from edgekit.types import InputSpec, Task

ENGINE = ClusterQ(
    samples=16,
    schedule=Schedule(epochs=6, steps=4, warmup=2, batch=16, classes=3, milestones=(0.5,)),
    making=Making(latent=6, width=8, clusters=3),
)


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def network(task: Task) -> CapturedModel:
    return capture(build(), [InputSpec("x", (1, 3, 8, 8))], task=task)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class StopError(Exception):
    """What a user's interruption is to the engine."""


@pytest.mark.parametrize(
    ("task", "calls"),
    [
        (Task.CLASSIFICATION, 3),
        (Task.CLASSIFICATION, 8),
        (Task.CLASSIFICATION, 17),
        (Task.EMBEDDING, 8),
        (Task.EMBEDDING, 9),
    ],
)
def test_stopped_run_continues_to_the_same_images(
    task: Task, calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the warm-up, at its end, just behind it, and later."""
    monkeypatch.setattr(checkpointing, "_EVERY_SECONDS", -1.0)
    model, path = network(task), tmp_path / "state.pt"
    whole = ENGINE.synthesize(model)
    seen: list[str] = []

    def stop(text: str, _fraction: float) -> None:
        seen.append(text)
        if len(seen) == calls:
            raise StopError

    with pytest.raises(StopError):
        ENGINE.synthesize(model, checkpoint=path, progress=stop)
    again: list[float] = []
    resumed = ENGINE.synthesize(
        model, checkpoint=path, progress=lambda _text, done: again.append(done)
    )
    assert again[0] == pytest.approx(0.98 * (calls + 1) / 24)  # nothing was done twice
    assert torch.equal(resumed.inputs[0], whole.inputs[0])
    assert torch.equal(resumed.labels, whole.labels)  # type: ignore[arg-type]
    for name in ("history", "selected", "selected_epoch", "steps", "ended", "notes"):
        assert resumed.facts[name] == whole.facts[name]
    finished = ENGINE.synthesize(model, checkpoint=path)  # nothing left to do
    assert torch.equal(finished.inputs[0], whole.inputs[0])


def test_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    ENGINE.synthesize(network(Task.CLASSIFICATION), checkpoint=path)
    other = build()
    with torch.no_grad():
        other[0].weight.mul_(1.5)  # type: ignore[operator]
    model = capture(other, [InputSpec("x", (1, 3, 8, 8))], task=Task.CLASSIFICATION)
    with pytest.raises(CalibrationError, match="another network"):
        ENGINE.synthesize(model, checkpoint=path)


SCRIPT = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, {folder!r})
import test_clusterq_resume as here
from edgekit import checkpointing
from edgekit.types import Task

torch.set_num_threads(1)
checkpointing._EVERY_SECONDS = -1.0
here.ENGINE.synthesize(
    here.network(Task.CLASSIFICATION),
    checkpoint=Path({path!r}),
    progress=lambda text, done: print(done, flush=True),
)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the platform has no kill -9")
def test_killed_run_continues_to_the_same_images(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    folder = str(Path(__file__).parent)
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(folder=folder, path=str(path))],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert child.stdout is not None
    for _ in range(10):
        child.stdout.readline()
    time.sleep(0.01)  # anywhere in a step or in writing the state
    child.kill()
    child.stdout.close()
    assert child.wait() == -signal.SIGKILL
    model = network(Task.CLASSIFICATION)
    told: list[float] = []
    resumed = ENGINE.synthesize(
        model, checkpoint=path, progress=lambda _text, done: told.append(done)
    )
    assert told[0] > 0.98 * 9 / 24
    assert torch.equal(resumed.inputs[0], ENGINE.synthesize(model).inputs[0])
