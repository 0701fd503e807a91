"""Weight-only schemes through the command line: report, manifest and inspection of a result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.cli import main
from edgekit.inspect_result import inspect_result

torch = pytest.importorskip("torch", reason="the host part needs the extra 'torch'")
pytest.importorskip("onnxruntime", reason="runs the exported files")
pytest.importorskip("openvino", reason="runs the exported files")

NETWORKS = """
from torch import nn

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.hidden = nn.Embedding(64, 96), nn.Linear(96, 64)
        self.head = nn.Linear(64, 4)

    def forward(self, ids):
        return self.head(self.hidden(self.table(ids)).relu().mean(1))

def picture():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(2))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("networks")
    (path / "networks.py").write_text(NETWORKS, encoding="utf-8")
    names: dict[str, Any] = {"__name__": "networks"}
    exec(NETWORKS, names)
    torch.manual_seed(0)
    torch.save(names["Words"]().state_dict(), path / "words.pt")
    torch.save(names["picture"]().state_dict(), path / "picture.pt")
    return path


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("edgekit.exporters.tensorrt.find_builder", lambda: None)
    return folder


def report_of(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((path / "report.json").read_text(encoding="utf-8"))
    return document


def test_result_of_a_network_of_words(here: Path) -> None:
    arguments = ["--arch", "networks:Words", "--input", "ids:1x8:int64", "--scheme", "w4a16"]
    assert main(["quantize", "words.pt", *arguments, "--out", "words"]) == 0
    document = report_of(here / "words")
    assert document["bits"] == {"table": [4, 16], "hidden": [4, 16], "head": [8, 16]}
    for name, target in document["targets"].items():
        assert target["passed"], target["reason"]
        assert target["integer_layers"] == 0
        assert target["weighted_layers"] == 3
        assert "in blocks of 32" in target["float_layers"]["hidden"]
        stored = {"hidden": "int4", "head": "int8"}
        if name != "tensorrt":
            stored["table"] = "int4"
        kept = {layer: text.partition(" ")[0] for layer, text in target["stored_layers"].items()}
        assert kept == stored
        told = {layer["name"]: layer["precision"].partition(" ")[0] for layer in target["layers"]}
        assert told in ({}, stored)
    assert document["targets"]["tensorrt"]["float_layers"]["table"].startswith("stays float16")
    hidden = {layer.name: layer for layer in inspect_result(here / "words").layers}["hidden"]
    assert hidden.bits == (4, 16)
    assert hidden.precision["tensorrt"] == "int4 weights, float16 math"
    weight = torch.load(here / "words.pt", weights_only=True)["hidden.weight"].numpy()
    assert hidden.weight_sqnr_db == pytest.approx(_sqnr_db(weight, here / "words"), abs=1e-3)


def _sqnr_db(weight: np.ndarray, result: Path) -> float:
    from safetensors.numpy import load_file

    stored = load_file(result / "quantized.safetensors")
    codes, scale = stored["hidden.codes"], stored["hidden.scale"]
    assert scale.shape == (64, 3)
    rounded = (codes.reshape(64, 3, 32) * scale[:, :, None]).reshape(64, 96)
    return float(10 * np.log10((weight**2).sum() / ((rounded - weight) ** 2).sum()))


def test_target_that_could_store_nothing_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--arch", "networks:picture", "--input", "1x3x8x8", "--scheme", "w4a16"]
    assert main(["quantize", "picture.pt", *arguments, "--out", "picture"]) == 1
    targets = report_of(here / "picture")["targets"]
    assert {name: target["status"] for name, target in targets.items()} == {
        "onnxruntime": "failed",
        "openvino": "ok",
        "tensorrt": "failed",
    }
    for name in ("onnxruntime", "tensorrt"):
        assert "'0' first" in targets[name]["failure"]
        assert "nearest is w4a8" in targets[name]["failure"]
        assert not (here / "picture" / name).exists()
    assert "w4a16 changes nothing" in capsys.readouterr().err
