"""Processes that take turns: real ones, what they tell, and how they end."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import ConfigError, EdgekitError, VerificationError
from edgekit.runners.drawn import run_on_drawn_inputs
from edgekit.runners.timing import TimingRequest
from edgekit.runners.turns import TurnsProcess

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


def request_for(model: Path, target: str = "onnxruntime", **changes: Any) -> TimingRequest:
    plain: dict[str, Any] = {
        "target": target,
        "model": model,
        "shapes": {},
        "batch": 1,
        "threads": 1,
        "warmup_s": 0.0,
        "seconds": 0.0,
    }
    return TimingRequest(**{**plain, **changes})


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_two_processes_take_turns(qdq_network: Any, target: str) -> None:
    pytest.importorskip(target, reason=f"{target} is not installed")
    request = request_for(qdq_network.path, target)
    with TurnsProcess(request) as first, TurnsProcess(request) as second:
        for process in (first, second):
            process.ready()
        lowest = [process.turn(0.002, 0.0) for process in (first, second, first)]
        highest = first.turn(0.002, 100.0)
        block, other = first.block(), second.block()
        pids = [process._child.pid for process in (first, second)]
    assert all(ms > 0 for ms in [*lowest, highest])
    assert block.min_ms <= lowest[0]
    assert block.max_ms >= highest
    assert block.runs >= 3 > 0 < other.runs  # three turns of at least one inference
    assert block.inputs == other.inputs == {"x": [1, 3, 8, 8]}
    assert target in block.versions
    assert block.cold_start_ms > 0
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_turn_has_at_least_one_inference(qdq_network: Any) -> None:
    with TurnsProcess(request_for(qdq_network.path)) as process:
        process.ready()
        assert process.turn(0.0, 50.0) > 0
        assert process.block().runs == 1


def test_process_that_is_killed(qdq_network: Any) -> None:
    with TurnsProcess(request_for(qdq_network.path)) as process:
        process.ready()
        os.kill(process._child.pid, signal.SIGKILL)
        with pytest.raises(VerificationError, match="crashed with SIGKILL"):
            process.turn(0.0, 50.0)


def test_file_that_does_not_open(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    told = pytest.raises(EdgekitError, match=r"bad\.onnx")
    with TurnsProcess(request_for(tmp_path / "bad.onnx")) as process, told:
        process.ready()


def test_batch_that_does_not_fit(qdq_network: Any) -> None:
    told = pytest.raises(ConfigError, match="first axis is fixed")
    with TurnsProcess(request_for(qdq_network.static_path, batch=3)) as process, told:
        process.ready()


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_drawn_inputs_are_the_same_for_every_run(qdq_network: Any, target: str) -> None:
    pytest.importorskip(target, reason=f"{target} is not installed")
    first, second = (
        run_on_drawn_inputs(request_for(qdq_network.path, target), 2) for _ in range(2)
    )
    assert first.inputs == {"x": [1, 3, 8, 8]}
    (before,), (after,) = first.outputs.values(), second.outputs.values()
    assert before.shape == (2, 1, 4, 8, 8)
    assert (before == after).all()  # the same kernels on the same numbers
    assert (before[0] != before[1]).any()  # and other numbers in each run
    assert sorted(layer.precision for layer in first.executed) == ["float32", "int8"]
