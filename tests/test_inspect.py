"""What is seen in a network before it is quantized, and read from a result afterwards."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit import machine_tables
from edgekit.errors import LoadError

torch = pytest.importorskip("torch", reason="the host part needs the extra 'torch'")

from edgekit.inspect_model import ModelInspection, inspect_model  # noqa: E402
from edgekit.inspect_result import ResultInspection, inspect_result  # noqa: E402
from edgekit.options import InputOption, parse_preprocessing  # noqa: E402
from edgekit.pipeline import quantize  # noqa: E402
from edgekit.registry import RUNNERS  # noqa: E402
from edgekit.types import Cpu, Effort, Task  # noqa: E402

NETWORK = """
from torch import nn


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.depthwise_norm = nn.GroupNorm(2, 8)
        self.grouped = nn.Conv2d(8, 16, 1, groups=4)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.act = nn.Hardswish()
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem_norm(self.stem(x)).relu()
        x = self.act(self.depthwise_norm(self.depthwise(x)))
        x = self.up(self.grouped(x).relu())
        return self.head(x.mean((2, 3)))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(37, 16)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 3)

    def forward(self, ids):
        return self.head(self.norm(self.table(ids))).mean(1)
"""
IMAGE = [InputOption("x", (1, 3, 16, 16))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `mixed.py`, and the weights of its networks."""
    folder = tmp_path_factory.mktemp("inspect")
    (folder / "mixed.py").write_text(NETWORK, encoding="utf-8")
    names: dict[str, Any] = {}
    exec(NETWORK, names)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name in ("Network", "Words"):
            torch.save(names[name]().state_dict(), folder / f"{name}.pt")
    return folder


@pytest.fixture
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "mixed", raising=False)
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path) -> ModelInspection:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delitem(sys.modules, "mixed", raising=False)
        return inspect_model(
            folder / "Network.pt",
            arch="mixed:Network",
            inputs=IMAGE,
            preprocessing=parse_preprocessing("mean=0.5,std=0.25"),
            cpu=Cpu.AVX2,
        )


@pytest.fixture(scope="module")
def result(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network, quantized for the runtimes of this machine."""
    for runtime in ("onnxruntime", "openvino"):
        pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    out = tmp_path_factory.mktemp("quantized") / "result"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delitem(sys.modules, "mixed", raising=False)
        quantize(
            folder / "Network.pt",
            out=out,
            arch="mixed:Network",
            inputs=IMAGE,
            preprocessing=parse_preprocessing("mean=0.5,std=0.25"),
            targets=["onnxruntime", "openvino"],
            cpu=Cpu.AVX2,
            effort=Effort.INSTANT,
        )
    return out


def test_layers_in_order_with_kind_shape_and_normalization(seen: ModelInspection) -> None:
    found = [
        (layer.name, layer.kind, layer.weight_shape, layer.parameters, layer.normalization)
        for layer in seen.layers
    ]
    assert found == [
        ("stem", "conv", (8, 3, 3, 3), 216, "BatchNorm (folded)"),
        ("depthwise", "depthwise conv", (8, 1, 3, 3), 80, "GroupNorm"),
        ("grouped", "conv in 4 groups", (16, 2, 1, 1), 48, None),
        ("up", "conv_transpose", (16, 8, 2, 2), 520, None),
        ("head", "linear", (5, 8), 45, None),
    ]
    assert seen.normalizations == {"BatchNorm": 1, "GroupNorm": 1}
    assert seen.operators["hardswish"] == 1
    assert seen.parameters == 216 + 80 + 48 + 520 + 45 + 2 * (8 + 8)  # gamma and beta twice


def test_float_layers_have_a_reason(seen: ModelInspection) -> None:
    (grouped,) = (layer for layer in seen.layers if layer.name == "grouped")
    # TensorRT takes multiples of 4 channels in a group; here they are 2 and 4.
    assert "multiples of 4" in grouped.targets["tensorrt"]
    assert grouped.targets["openvino"] == "int8"
    for layer in seen.layers:
        assert list(layer.targets) == list(RUNNERS)


def test_calibration_and_its_reasons(seen: ModelInspection) -> None:
    assert (seen.calibration, seen.reasons[0]) == (
        "distill",
        "auto: the engine of effort standard",
    )
    text = "; ".join(seen.reasons)
    assert "1 BatchNorms hold statistics" in text
    assert "GroupNorm are bounded" in text
    assert "input 'x': from -2 to 2" in text  # (0 - 0.5) / 0.25 and (1 - 0.5) / 0.25


def test_network_of_words(inside: Path) -> None:
    seen = inspect_model(
        inside / "Words.pt",
        arch="mixed:Words",
        inputs=[InputOption("ids", (1, 9), "int64")],
        task=Task.OTHER,
    )
    text = "; ".join(seen.reasons)
    assert "input 'ids': ids from 0 to 36" in text
    assert "LayerNorm" in text
    assert seen.calibration == "renorm"
    assert text.count("BatchNorm") == text.count("auto: no BatchNorm whose statistics") == 1
    assert [layer.name for layer in seen.layers] == ["head"]


def test_document_of_a_model_is_json_and_is_shown(
    seen: ModelInspection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    document = json.loads(json.dumps(seen.to_dict(), allow_nan=False))
    text = machine_tables.model_inspection(document)
    assert "tensorrt: 4 of 5 layers in INT8" in text
    assert "in float: grouped (2 input and 4 output channels" in text


def test_prediction_is_what_the_runtimes_ran(seen: ModelInspection, result: Path) -> None:
    inspected = inspect_result(result)
    for target in ("onnxruntime", "openvino"):
        predicted = {layer.name: layer.targets[target] for layer in seen.layers}
        for layer in inspected.layers:
            if layer.precision[target] == "int8":
                assert predicted[layer.name] == "int8"
            elif predicted[layer.name] == "int8":  # only the runtime itself could know
                assert "planned for INT8" in layer.float_reason[target]
            else:
                assert layer.float_reason[target] == predicted[layer.name]
        ran = [layer.precision[target] for layer in inspected.layers]
        assert ran.count("int8") >= 4


@pytest.fixture
def inspected(result: Path) -> ResultInspection:
    return inspect_result(result)


def test_ranges_are_those_of_the_report(inspected: ResultInspection, result: Path) -> None:
    tensors = json.loads((result / "report.json").read_text(encoding="utf-8"))["tensors"]
    by_name = {layer.name: layer for layer in inspected.layers}
    assert list(by_name) == ["stem", "depthwise", "grouped", "up", "head"]
    assert by_name["stem"].input_range == (-2.0, 2.0)
    conv = tensors["conv2d"]  # the name of the first convolution in the captured graph
    assert by_name["stem"].output_range == (conv["minimum"], conv["maximum"])
    assert by_name["stem"].rule == conv["rule"]
    assert by_name["stem"].input_rule == "preprocessing"
    relu = tensors["relu"]
    assert by_name["depthwise"].input_range == (relu["minimum"], relu["maximum"])
    assert by_name["depthwise"].input_rule == relu["rule"]
    assert inspected.to_dict()["tensors"] == tensors


def test_every_range_has_a_documented_rule(inspected: ResultInspection, root: Path) -> None:
    text = (root / "docs" / "report.md").read_text(encoding="utf-8")
    documented = "|".join(re.findall(r"^- `([^`]+)`:", text, re.MULTILINE))
    norm = "(?:BatchNorm|GroupNorm|LayerNorm|InstanceNorm)"
    pattern = documented.replace("METHOD", "renorm").replace(" N ", r" \d+ ")
    pattern = pattern.replace("NORM stores", f"{norm}(?: and {norm})* stores?")
    rules = {tensor["rule"] for tensor in inspected.report["tensors"].values()}
    assert [rule for rule in rules if not re.fullmatch(pattern, rule)] == []
    assert "preprocessing" in rules
    assert "renorm, behind the last normalization" in rules
    assert any(rule.endswith("GroupNorm stores") for rule in rules)
    assert any(rule.endswith("BatchNorm stores") for rule in rules)


def test_weight_sqnr_is_that_of_the_stored_codes(inspected: ResultInspection, result: Path) -> None:
    onnx = pytest.importorskip("onnx")
    safetensors = pytest.importorskip("safetensors.numpy")
    stored = safetensors.load_file(result / "quantized.safetensors")
    graph = onnx.load(result / "float/model.onnx").graph
    weights = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    checked = 0
    for layer in inspected.layers:
        codes, scale = stored[f"{layer.name}.codes"], stored[f"{layer.name}.scale"]
        weight = weights.get(f"{layer.name}.weight")
        if weight is None or weight.shape != codes.shape:
            continue
        scale = (
            scale[None, :, None, None]
            if layer.name == "up"
            else scale.reshape(-1, *[1] * (codes.ndim - 1))
        )
        noise = np.square(codes * scale.astype(np.float64) - weight).sum()
        expected = 10 * np.log10(np.square(weight.astype(np.float64)).sum() / noise)
        assert layer.weight_sqnr_db == pytest.approx(expected, abs=1e-6)
        assert 25 < expected < 60  # 8 bits; anything else is a wrong scale
        checked += 1
    assert checked >= 4


def test_repairs_and_figures_of_the_targets(inspected: ResultInspection) -> None:
    document = inspected.to_dict()
    for name, target in document["targets"].items():
        total = sum(layer.repaired.get(name, 0) for layer in inspected.layers)
        assert total == target["repaired_channels"]
        assert target["layers"] == 5
        assert target["sqnr_db"] > 10


def test_document_of_a_result_is_json_and_is_shown(
    inspected: ResultInspection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    document = json.loads(json.dumps(inspected.to_dict(), allow_nan=False))
    text = machine_tables.result_inspection(document)
    assert "openvino: 5 of 5 layers in INT8 (run by its runtime)" in text
    assert "ranges: renorm, behind the last normalization" in text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("report.json", b"{}"),
        ("report.json", b"not json"),
        ("report.json", None),
        ("float/model.onnx", b"damaged"),
        ("manifest.json", b"[]"),
    ],
)
def test_damaged_result(result: Path, tmp_path: Path, name: str, content: bytes | None) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(result, copy)
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(content)
    with pytest.raises(LoadError):
        inspect_result(copy)


def test_folder_that_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="is not an edgekit result directory"):
        inspect_result(tmp_path)
