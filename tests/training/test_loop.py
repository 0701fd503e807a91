"""The loop with a task of two numbers: best state, budgets, failures, and kills."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgekit import checkpointing  # noqa: E402
from edgekit.checkpointing import Checkpoint  # noqa: E402
from edgekit.errors import CalibrationError, ConfigError, TrainingError  # noqa: E402
from edgekit.training.loop import VALIDATIONS, Budget, train  # noqa: E402

KILLED_AT = 33


class Descent:
    """Follows noisy gradients of ``(x - 3)^2``; the metric is best at ``peak``."""

    metric = "closeness"

    def __init__(self, fails_at: int | None = None, broken: float = math.nan) -> None:
        self.place = torch.zeros(1)
        self.speed = torch.zeros(1)
        self.fails_at, self.broken = fails_at, broken
        self.shares: list[float] = []

    def step(self, index: int, spent: float) -> Mapping[str, float]:
        if index == self.fails_at:
            if self.broken == KILLED_AT:
                os.kill(os.getpid(), signal.SIGKILL)
            return {"distance": self.broken}
        self.shares.append(spent)
        noise = float(np.random.default_rng([7, index]).normal())
        self.speed = 0.9 * self.speed - 0.02 * (self.place - 3 + noise)
        self.place = self.place + self.speed
        return {"distance": float((self.place - 3) ** 2)}

    def validate(self) -> float:
        return -abs(float(self.place) - 2.0)

    def weights(self) -> dict[str, torch.Tensor]:
        return {"place": self.place.clone()}

    def state(self) -> dict[str, Any]:
        return {"place": self.place, "speed": self.speed}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.place, self.speed = state["place"], state["speed"]


def checkpoint(path: Path) -> Checkpoint:
    return Checkpoint(path, {"network": "descent"}, elsewhere=f"remove '{path}'")


def test_best_state_wins_not_the_last() -> None:
    task = Descent()
    told: list[tuple[str, float]] = []
    made = train(task, Budget(steps=100), progress=lambda text, share: told.append((text, share)))
    assert (made.steps, len(made.history)) == (100, VALIDATIONS)
    assert [step for step, _ in made.history] == list(range(5, 101, 5))
    best = max(score for _, score in made.history)
    assert made.score == best > made.history[-1][1]
    assert (made.best_step, best) in made.history
    assert -abs(float(made.weights["place"]) - 2.0) == best
    assert task.shares == [index / 100 for index in range(100)]
    assert told[-1][0].startswith("train 100/100: distance ")
    assert "0 s left" in told[-1][0]
    assert [share for _, share in told] == [index / 100 for index in range(1, 101)]


def test_minutes_end_a_run() -> None:
    made = train(Descent(), Budget(steps=10**9, minutes=0.1 / 60))
    assert 0 < made.steps < 10**9
    assert made.seconds >= 0.1
    assert made.history[-1][0] == made.steps


@pytest.mark.parametrize(
    ("steps", "minutes"), [(None, None), (0, None), (None, 0.0), (None, math.nan), (5, -1.0)]
)
def test_senseless_budget(steps: int | None, minutes: float | None) -> None:
    with pytest.raises(ConfigError):
        Budget(steps, minutes)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_no_number_stops_with_the_state_before(value: float, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=f"the loss 'distance' became {value} in step 8"):
        train(Descent(fails_at=7, broken=value), Budget(steps=20))
    path = tmp_path / "state"
    checkpoint(path).save({"task": Descent().state(), "run": {}})
    with pytest.raises(TrainingError, match=f"the state before it is in '{path}'"):
        train(Descent(fails_at=7), Budget(steps=20), checkpoint=checkpoint(path))


def test_metric_that_is_no_number_stops() -> None:
    class Blind(Descent):
        def validate(self) -> float:
            return math.nan

    with pytest.raises(TrainingError, match="closeness became nan"):
        train(Blind(), Budget(steps=20))


def killed_run(path: Path) -> None:
    """Run in a child process, which kills itself in the middle; the state is saved at each step."""
    checkpointing._EVERY_SECONDS = -1.0
    train(
        Descent(fails_at=KILLED_AT, broken=KILLED_AT),
        Budget(steps=100),
        checkpoint=checkpoint(path),
    )


def test_run_that_was_killed_ends_in_the_same_state(tmp_path: Path) -> None:
    path = tmp_path / "state"
    here = Path(__file__)
    code = (
        f"import sys; sys.path.insert(0, {str(here.parent)!r}); import {here.stem} as t; "
        f"t.killed_run(t.Path({str(path)!r}))"
    )
    child = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    whole = train(Descent(), Budget(steps=100))
    resumed_task = Descent()
    resumed = train(resumed_task, Budget(steps=100), checkpoint=checkpoint(path))
    assert len(resumed_task.shares) == 100 - KILLED_AT
    assert torch.equal(resumed.weights["place"], whole.weights["place"])
    assert (resumed.history, resumed.losses) == (whole.history, whole.losses)
    assert path.exists()


def test_state_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    Checkpoint(path, {"network": "another"}).save({"task": {}, "run": {}})
    with pytest.raises(CalibrationError, match="another network") as caught:
        train(Descent(), Budget(steps=5), checkpoint=checkpoint(path))
    assert f"remove '{path}'" in caught.value.hint


def test_interrupt_says_where_to_go_on(tmp_path: Path) -> None:
    class Interrupted(Descent):
        def step(self, index: int, spent: float) -> Mapping[str, float]:
            if index == 3:
                raise KeyboardInterrupt
            return super().step(index, spent)

    path = tmp_path / "state"
    checkpoint(path).save({"task": Descent().state(), "run": {}})
    with pytest.raises(KeyboardInterrupt, match="--resume"):
        train(Interrupted(), Budget(steps=20), checkpoint=checkpoint(path))
