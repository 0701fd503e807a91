"""Weight-only artifacts of NNCF and edgekit in one table: what is written, read, compared."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the host part needs the extra 'torch'")


@pytest.fixture(scope="module")
def benchmark(root: Path) -> Any:
    """The module; benchmarks are run from the checkout and not installed."""
    pytest.importorskip("openvino", reason="OpenVINO executes both")
    pytest.importorskip("nncf", reason="NNCF is what is compared with")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root))
        yield importlib.import_module("benchmarks.weight_only")


@pytest.fixture(scope="module")
def network(benchmark: Any) -> Any:
    """A transformer of 64 features with weights drawn at random, and eight images of noise."""
    trained = importlib.import_module("benchmarks._trained")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = trained.SmallTransformer(wide=64, depth=1).eval()
        images = torch.randn(8, 3, 32, 32)
    spec = benchmark.InputSpec("image", (1, 3, 32, 32))
    model = benchmark.capture(module, [spec], num_classes=10)
    statistics = benchmark.calibrate(model, "renorm", samples=16, seed=0)
    made = statistics.inputs.inputs[0]
    return benchmark.Network("tiny", module, model, images, statistics, made)


@pytest.fixture(scope="module")
def result(benchmark: Any, network: Any) -> dict[str, Any]:
    engine = benchmark.Engine
    chosen = (
        engine("ours 8", "8", ours={"scheme": "w8a16"}),
        engine("theirs 8", "8", nncf={"mode": "int8_sym"}),
        engine("impossible", "8", nncf={"mode": "int8_sym", "awq": True}),
        engine("ours 4", "4", ours={"scheme": "w4a16"}),
        engine("theirs 4", "4", nncf={"mode": "int4_sym"}),
        engine("theirs 4, fed", "4", nncf={"mode": "int4_sym", "gptq": True}, data=True),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "ENGINES", chosen)
        found: dict[str, Any] = benchmark._measured(network)
    return found


def test_rows_say_what_the_files_hold(result: dict[str, Any]) -> None:
    rows = {row["engine"]: row for row in result["rows"]}
    assert list(rows) == ["ours 8", "theirs 8", "ours 4", "theirs 4", "theirs 4, fed"]
    for name, row in rows.items():
        assert sum(row["stored"].values()) == pytest.approx(1, abs=1e-3), name  # four digits each
        assert row["share"] == pytest.approx(row["bytes"] / result["float_bytes"], abs=1e-4)
        assert np.isfinite(row["kl"])
        narrow = row["stored"].get("i4", 0) + row["stored"].get("u4", 0)
        if row["widths"] == "8":
            assert narrow == 0
            assert row["stored"]["i8"] > 0.9  # what remains are positions and norms
            assert 0.25 < row["share"] < 0.35
        else:
            assert narrow > 0.7  # the convolution and the last layer have 8 bits
            assert 0.125 < row["share"] < 0.25


def test_intervals_compare_with_ours_of_the_same_widths(result: dict[str, Any]) -> None:
    rows = {row["engine"]: row for row in result["rows"]}
    assert rows["ours 8"]["against_ours"] is None
    assert rows["ours 4"]["against_ours"] is None
    for theirs, ours in (("theirs 8", "ours 8"), ("theirs 4", "ours 4")):
        interval = rows[theirs]["against_ours"]
        difference = rows[theirs]["kl"] - rows[ours]["kl"]
        assert interval["mean"] == pytest.approx(difference, rel=1e-6)
        assert interval["low"] <= interval["mean"] <= interval["high"]


def test_inputs_reach_the_peer(result: dict[str, Any]) -> None:
    rows = {row["engine"]: row for row in result["rows"]}
    assert rows["theirs 4, fed"]["kl"] != rows["theirs 4"]["kl"]


def test_what_a_peer_refuses_is_recorded(result: dict[str, Any]) -> None:
    assert list(result["failures"]) == ["impossible (8)"]
    assert "AWQ" in result["failures"]["impossible (8)"].upper()


def test_a_network_that_is_not_known_is_an_error(
    benchmark: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main(["--networks", "resnet1"]) == 2
    assert "unknown network resnet1" in capsys.readouterr().err
