"""Energy of an inference, single streams, and notes about throttling."""

from __future__ import annotations

import io
import json
import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit import machine_tables
from edgekit.bench import bench
from edgekit.bench.energy import Power
from edgekit.bench.limits import throttle_notes
from edgekit.cli import main
from edgekit.errors import ConfigError
from edgekit.power.energy import Samples, Series
from edgekit.power.rails import Source, find_sources
from edgekit.runners.timing import Block

onnx = pytest.importorskip("onnx", reason="the test network is built with onnx")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "relu.onnx"
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "relu",
        [value("x", onnx.TensorProto.FLOAT, [1, 64])],
        [value("y", onnx.TensorProto.FLOAT, [1, 64])],
    )
    opset = [onnx.helper.make_opsetid("", 19)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


def block(runs: int, begin_s: float, end_s: float) -> Block:
    return Block(runs, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, None, {}, {}, begin_s=begin_s, end_s=end_s)


def constant(watts: float, step: float = 0.1) -> Samples:
    times = np.arange(0, 20, step)
    series = {"VDD_IN": Series(times, np.full(len(times), watts))}
    return Samples((Source("hwmon"),), {"hwmon": series})


def test_energy_is_that_of_the_blocks_divided_by_their_runs() -> None:
    power = Power(constant(6.0), idle_w=2.0)
    found = power.lane([block(10, 1.0, 2.0), block(30, 5.0, 7.0)]).to_dict()
    # 6 J for 10 runs and 12 J for 30; above idle 4 J and 8 J.
    assert found["joules_per_inference"]["value"] == pytest.approx((0.6 + 0.4) / 2)
    assert found["above_idle_joules_per_inference"]["value"] == pytest.approx((0.4 + 8 / 30) / 2)
    interval = found["joules_per_inference"]
    assert 0.4 <= interval["low"] <= interval["value"] <= interval["high"] <= 0.6
    assert found["mean_w"] == pytest.approx(6.0)
    assert found["samples"] >= 28
    assert found["reason"] is None


def test_why_there_is_no_energy() -> None:
    short = Power(constant(6.0, step=1.0)).lane([block(10, 1.0, 1.5), block(10, 3.0, 3.5)])
    assert short.joules is None
    assert "--seconds" in (short.reason or "")
    absent = Power(Samples((), {}), reason="no power sensor").lane([block(10, 1.0, 2.0)])
    assert absent.to_dict()["reason"] == "no power sensor"
    assert absent.to_dict()["joules_per_inference"] is None


def test_energy_of_a_real_benchmark(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for tegrastats draws 6 W whatever happens; all else is real."""
    if find_sources(Path("/"), str(tmp_path))[0]:
        pytest.skip("this machine has power sensors of its own")
    tool = tmp_path / "tegrastats"
    line = "RAM 1/2MB VDD_IN 6000mW/1mW VDD_SOC 1000mW/1mW"
    tool.write_text(f"#!/bin/sh\nwhile true; do echo '{line}'; sleep 0.02; done\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    report = bench(
        [network],
        targets=["onnxruntime"],
        blocks=2,
        block_seconds=0.3,
        warmup_seconds=0.0,
        threads=1,
    )
    document = json.loads(json.dumps(report.to_dict()))
    (source,) = document["power"]["sources"]
    assert (source["name"], source["counted"]) == ("tegrastats", ["VDD_IN"])
    assert source["whole_board"]
    assert document["power"]["idle_w"] == pytest.approx(6.0)
    (lane,) = document["lanes"]
    spent = [(b["end_s"] - b["begin_s"]) / b["runs"] for b in lane["blocks"]]
    expected = 6.0 * sum(spent) / len(spent)
    assert lane["energy"]["joules_per_inference"]["value"] == pytest.approx(expected)
    assert lane["energy"]["above_idle_joules_per_inference"]["value"] == pytest.approx(0, abs=1e-9)
    assert "mJ for an inference" in machine_tables.bench(document)


def test_single_stream_command(network: Path) -> None:
    words = ["bench", str(network), "--targets", "onnxruntime", "--mode", "single-stream"]
    words += ["--min-duration", "0.05", "--min-queries", "150", "--warmup", "0", "--no-energy"]
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(io.StringIO()):
        assert main([*words, "--blocks", "3", "--json"]) == 0
    document = json.loads(out.getvalue())
    (lane,) = document["lanes"]
    stream = lane["single_stream"]
    assert stream["queries"] == lane["runs"] >= 150
    assert stream["duration_s"] >= 0.05
    assert lane["min_ms"] <= stream["measured_ms"] <= stream["estimate_ms"] <= lane["max_ms"]
    assert (document["comparisons"], len(lane["blocks"])) == ([], 3)
    assert document["settings"]["mode"] == "single-stream"
    assert document["power"]["reason"] == "not asked for"
    text = machine_tables.bench(document)
    assert "by early stopping" in text
    assert "single stream of at least 0.05 s" in text


def test_single_stream_too_short_for_an_estimate_says_so(network: Path) -> None:
    report = bench(
        [network],
        targets=["onnxruntime"],
        mode="single-stream",
        min_seconds=0.0,
        min_queries=20,
        warmup_seconds=0.0,
        energy=False,
    )
    assert any("20 queries are too few" in note and "64" in note for note in report.notes)


@pytest.mark.parametrize(
    "settings",
    [{"mode": "offline"}, {"min_queries": 0}, {"min_seconds": -1.0}],
    ids=str,
)
def test_settings_out_of_range(network: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        bench([network], **settings)


QUIET = {"cpu_events": 5, "overcurrent_events": None, "cooling": []}


def moment(**changes: Any) -> dict[str, Any]:
    return {"throttling": {**QUIET, **changes}, "gpus": []}


def gpu(throttled: bool | None, *reasons: str) -> dict[str, Any]:
    state = {"index": 0, "name": "T4", "throttled": throttled, "reasons": list(reasons)}
    return {"throttling": QUIET, "gpus": [state]}


def test_machine_that_was_not_throttled_has_no_note() -> None:
    assert throttle_notes([moment(), moment(), gpu(False, "idle"), gpu(None)]) == []


@pytest.mark.parametrize(
    ("moments", "text"),
    [
        ([moment(), moment(cpu_events=9)], "because of heat (4 events)"),
        (
            [moment(overcurrent_events=1), moment(overcurrent_events=3)],
            "(2 over-current events)",
        ),
        ([moment(), moment(cooling=["devfreq-gpu"]), moment()], "lowered because of heat: devfreq"),
        ([gpu(True, "power cap"), gpu(True, "thermal, by software")], "GPU 0 (T4) was throttled"),
    ],
)
def test_throttling_is_noted(moments: list[dict[str, Any]], text: str) -> None:
    (note,) = throttle_notes(moments)
    assert text in note
    assert "throttled machine" in note
