"""Peers as engines: their executed outputs become rows of the table of calibrations."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the host part needs the extra 'torch'")


@pytest.fixture
def benchmark(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module; benchmarks are run from the checkout and not installed."""
    monkeypatch.syspath_prepend(str(root))
    return importlib.import_module("benchmarks.accuracy")


def logits(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, (200, 7)).astype(np.float32)


def result(benchmark: Any, outputs: np.ndarray) -> Any:
    return benchmark.PeerResult("nncf on our set", "openvino", 12.5, outputs)


def test_a_peer_is_compared_with_renorm_on_its_own_runtime(benchmark: Any) -> None:
    wanted, outputs, renorm = logits(0), logits(0) + logits(1), logits(0) + 0.1 * logits(2)
    reference = {
        "openvino": benchmark.logit_kl(wanted, renorm),
        "onnxruntime": np.zeros(200),
    }
    row = benchmark._peer_row(result(benchmark, outputs), outputs, wanted, reference)
    theirs = float(benchmark.logit_kl(wanted, outputs).mean())
    assert row.kl == {"openvino": pytest.approx(theirs)}
    assert row.agreement == {"openvino": benchmark.agreement(wanted, outputs)}
    assert row.executed
    interval = row.against_renorm["openvino"]
    assert interval.mean == pytest.approx(theirs - reference["openvino"].mean())
    assert interval.low > 0  # ten times the noise on every image
    line = benchmark._line("net", row)
    assert "nncf on our set" in line
    assert f"openvino {1e3 * theirs:.2f}e-3" in line


def test_a_peer_without_renorm_has_no_interval(benchmark: Any) -> None:
    row = benchmark._peer_row(result(benchmark, logits(1)), logits(1), logits(0), {})
    assert row.against_renorm == {}


def test_an_unknown_engine_is_an_error(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--engines", "renorm,nncf on their set"]) == 2
    assert "nncf on their set" in capsys.readouterr().err


def test_every_engine_has_a_marker(benchmark: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs it")
    names = (*benchmark._ENGINES, *benchmark.PEER_ENGINES)
    rows = [{"engine": name, "seconds": 1.0, "kl": {"openvino": 0.1}} for name in names]
    benchmark._plot({"net": {"rows": rows}}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_outputs_of_an_artifact_are_kept(benchmark: Any, tmp_path: Path) -> None:
    """One matrix product over the pixels, against numpy on the same images."""
    onnx = pytest.importorskip("onnx", reason="the model file is ONNX")
    pytest.importorskip("onnxruntime", reason="ONNX Runtime executes it")
    step = importlib.import_module("benchmarks._accuracy")
    generator = np.random.default_rng(0)
    weight = generator.normal(0, 0.05, (3072, 10)).astype(np.float32)
    pixels = generator.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "cifar10_test.npz", images=pixels, labels=np.arange(12) % 10)
    _write_product(onnx, weight, tmp_path / "model.onnx")
    request = {
        "case": "cifar10_resnet8",  # pixels from 0 to 255
        "data": str(tmp_path),
        "images": None,
        "runtime": "onnxruntime",
        "path": str(tmp_path / "model.onnx"),
        "layers": False,
        "outputs": str(tmp_path / "outputs.npy"),
    }
    answer = step.predict(request)
    expected = pixels.astype(np.float64).transpose(0, 3, 1, 2).reshape(12, -1) @ weight
    found = np.load(tmp_path / "outputs.npy")
    # 3072 products of up to 40 summed in float32
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-2)
    assert answer["predicted"] == expected.argmax(1).tolist()


def _write_product(onnx: Any, weight: np.ndarray, path: Path) -> None:
    helper = onnx.helper
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("image", 1, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("logits", 1, [1, 10])],
        [onnx.numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(path))
