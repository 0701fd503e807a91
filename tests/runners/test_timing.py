"""The timed loop, the inputs it is fed, and a block in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import ConfigError, VerificationError
from edgekit.runners.run_options import RunOptions, Setup
from edgekit.runners.tensors import TensorInfo
from edgekit.runners.timing import TimingRequest, profile_layers, time_block, time_stream
from edgekit.runners.timing_worker import draw_feeds, time_calls


def request_for(**changes: Any) -> TimingRequest:
    plain: dict[str, Any] = {
        "target": "onnxruntime",
        "model": Path("model.onnx"),
        "shapes": {},
        "batch": 1,
        "threads": 1,
        "warmup_s": 0.0,
        "seconds": 0.01,
    }
    return TimingRequest(**{**plain, **changes})


def test_each_call_is_timed_once() -> None:
    calls = []
    times = time_calls(lambda: calls.append(None), 0.0, 7)
    assert len(calls) == len(times) == 7
    assert all(time >= 0 for time in times)
    more = time_calls(lambda: None, 0.02, 1)
    assert len(more) > 1
    assert sum(more) <= 1e9  # the calls themselves are nothing; a second would be a wrong unit


def test_request_survives_the_way_to_the_child() -> None:
    options = RunOptions(copies=False, cache=Path("cache"))
    request = request_for(shapes={"x": (1, 3)}, threads=None, options=options)
    assert TimingRequest.from_dict(request.to_dict()) == request


@pytest.mark.parametrize(
    ("shape", "stated", "batch", "expected"),
    [
        ((1, 3), None, 1, (1, 3)),
        ((None, 3), None, 4, (4, 3)),
        ((None, 3), (1, 3), 4, (4, 3)),
        ((None, None), (1, 50), 1, (1, 50)),
        ((2, 3), None, 2, (2, 3)),
        ((), None, 1, ()),
    ],
)
def test_sizes_of_inputs(
    shape: tuple[int | None, ...],
    stated: tuple[int, ...] | None,
    batch: int,
    expected: tuple[int, ...],
) -> None:
    shapes = {} if stated is None else {"x": stated}
    feeds = draw_feeds(
        (TensorInfo("x", "float32", shape),), request_for(shapes=shapes, batch=batch)
    )
    assert feeds["x"].shape == expected
    assert feeds["x"].dtype == np.float32


@pytest.mark.parametrize(
    ("shape", "stated", "batch", "text"),
    [
        ((None, None), None, 1, "does not say all sizes"),
        ((1, 3), None, 2, "first axis is fixed"),
        ((1, 3), (1, 4), 1, "not \\[1, 4\\]"),
        ((1, 3), (1, 3, 8), 1, "not \\[1, 3, 8\\]"),
    ],
)
def test_sizes_that_are_unknown_or_contradict(
    shape: tuple[int | None, ...], stated: tuple[int, ...] | None, batch: int, text: str
) -> None:
    shapes = {} if stated is None else {"x": stated}
    with pytest.raises(ConfigError, match=text):
        draw_feeds((TensorInfo("x", "float32", shape),), request_for(shapes=shapes, batch=batch))


def test_values_of_inputs_are_valid_and_repeatable() -> None:
    infos = (TensorInfo("x", "float16", (1, 1000)), TensorInfo("ids", "int64", (1, 5)))
    first, second = (draw_feeds(infos, request_for()) for _ in range(2))
    np.testing.assert_array_equal(first["x"], second["x"])
    # The standard deviation of 1000 normal values is within 1 +- 0.1 (four sigma of its spread).
    assert float(first["x"].astype(np.float64).std()) == pytest.approx(1.0, abs=0.1)
    np.testing.assert_array_equal(first["ids"], np.zeros((1, 5), np.int64))


def test_openvino_block(openvino_ir: Path) -> None:
    block = time_block(request_for(target="openvino", model=openvino_ir, batch=3))
    assert block.inputs == {"x": [3, 3, 8, 8]}
    assert list(block.versions) == ["openvino"]
    assert block.setup == Setup().to_dict()
    assert block.device_ms is None
    # The block's calls, and little else, lie between its two moments.
    assert block.end_s - block.begin_s >= block.runs * block.mean_ms / 1e3
    profile = profile_layers(request_for(target="openvino", model=openvino_ir), 3)
    assert profile is not None
    assert len(profile.layers) > 1


def test_crash_is_told_with_its_signal(
    qdq_network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime.py").write_text("import os; os.abort()", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(VerificationError, match="SIGABRT"):
        time_block(request_for(model=qdq_network.path))


def test_stream_is_one_run_cut_into_consecutive_parts(qdq_network: Any) -> None:
    stream = time_stream(request_for(model=qdq_network.path, seconds=0.05), 200, 4)
    runs = [segment.runs for segment in stream.segments]
    assert len(runs) == 4
    assert sum(runs) == stream.early_stopping.queries >= 200
    assert stream.duration_s >= 0.05
    assert stream.early_stopping.estimate_ms is not None
    assert stream.early_stopping.estimate_ms <= max(s.max_ms for s in stream.segments)
    ends = [segment.end_s for segment in stream.segments]
    assert [segment.begin_s for segment in stream.segments[1:]] == pytest.approx(ends[:-1])
    spent = ends[-1] - stream.segments[0].begin_s
    assert spent == pytest.approx(stream.duration_s)
    assert len({segment.load_ms for segment in stream.segments}) == 1  # of one process


def test_stream_of_few_queries_has_no_more_parts_than_queries(qdq_network: Any) -> None:
    stream = time_stream(request_for(model=qdq_network.path, seconds=0.0), 3, 7)
    assert sum(segment.runs for segment in stream.segments) == 3
    assert stream.early_stopping.estimate_ms is None
