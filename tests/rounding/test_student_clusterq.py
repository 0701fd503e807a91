"""Generator and student in turn: the whole of ClusterQ, interrupted and not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit import checkpointing
from edgekit.artifacts import quantize_observed
from edgekit.calibrate import observe_made
from edgekit.calibration.clusterq import ClusterQ, Making, Schedule
from edgekit.calibration.renorm import Renorm
from edgekit.capture import CapturedModel, capture
from edgekit.quantized import QuantizedModel
from edgekit.types import Effort, InputSpec, Rounding, Task

ENGINE = ClusterQ(
    samples=16,
    schedule=Schedule(epochs=3, steps=4, warmup=2, batch=16, classes=3),
    making=Making(latent=6, width=8, clusters=3),
)
Watch = Callable[[str, float], None]


class StopError(Exception):
    """What a user's interruption is."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network() -> CapturedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
        )
        for _ in range(10):
            module.train()(torch.randn(32, 3, 8, 8))
    return capture(module.eval(), [InputSpec("x", (1, 3, 8, 8))], task=Task.CLASSIFICATION)


def quantize(path: Path | None, watch: Watch) -> QuantizedModel:
    captured = network()
    statistics = observe_made(captured, ENGINE.synthesize(captured), 0)
    return quantize_observed(
        captured,
        statistics,
        "w4a4",
        end_bits=4,
        rounding=Rounding.STUDENT,
        effort=Effort.INSTANT,
        checkpoint=path,
        progress=watch,
    )


def test_interrupted_in_the_middle_it_ends_with_the_same_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    whole = quantize(None, lambda text, _: seen.append(text))
    lines = [text for text in seen if text.startswith("student ")]
    assert len(lines) == 40
    assert any(" ce " in text for text in lines)  # images of classes, from the generator
    assert "a student" in str(whole.decisions["rounding"])

    monkeypatch.setattr(checkpointing, "_EVERY_SECONDS", -1.0)
    path = tmp_path / "run.student"

    def stop(text: str, _: float) -> None:
        if text.startswith("student 17/"):
            raise StopError

    with pytest.raises(StopError):
        quantize(path, stop)
    again: list[str] = []
    resumed = quantize(path, lambda text, _: again.append(text))
    assert next(text for text in again if text.startswith("student ")).startswith("student 18/")
    assert resumed.decisions == whole.decisions
    assert resumed.grids == whole.grids
    for name, codes in whole.codes.items():
        assert torch.equal(codes.codes, resumed.codes[name].codes)
        assert torch.equal(codes.scale, resumed.codes[name].scale)


def test_noise_leaves_learned_rounding_and_says_why() -> None:
    captured = network()
    statistics = Renorm(samples=16, batch=16).observe(captured)
    found = quantize_observed(
        captured, statistics, "w4a4", rounding=Rounding.STUDENT, effort=Effort.INSTANT
    )
    assert str(found.decisions["rounding"]).endswith(
        " (no student: it would have to learn from noise)"
    )
    assert not found.biases
