"""Schemes below 8 bits through the command line, with the real runtimes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bench import bench
from edgekit.cli import main
from edgekit.errors import UnsupportedError
from edgekit.evaluate import evaluate
from edgekit.inspect_result import inspect_result
from edgekit.machine_tables import result_inspection
from edgekit.manifest import read_manifest
from edgekit.runners import open_artifact

onnx = pytest.importorskip("onnx", reason="reads the exported files")
pytest.importorskip("torch", reason="the host part needs the extra 'torch'")
pytest.importorskip("onnxruntime", reason="runs the exported files")

Capture = pytest.CaptureFixture[str]
ARCH = ("quantize", "tiny.pt", "--arch", "tiny:build")
QUANTIZE = (*ARCH, "--input", "1x3x32x32", "--preprocessing", "crop=32", "--effort", "instant")
REASON = "no runtime has an integer kernel for 4-bit activations: simulated"


@pytest.fixture(scope="module")
def results(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Quantize the tiny network once with each set of options."""
    folder = tmp_path_factory.mktemp("schemes")
    shutil.copytree(tiny_folder, folder, dirs_exist_ok=True)
    made: dict[tuple[str, ...], Path] = {}

    def get(*words: str) -> Path:
        if words not in made:
            out = folder / f"result{len(made)}"
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                patch.setattr("edgekit.exporters.tensorrt.find_builder", lambda: None)
                assert main([*QUANTIZE, *words, "--out", str(out)]) == 0
            made[words] = out
        return made[words]

    return get


def report_of(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return document


def refused(words: tuple[str, ...], capsys: Capture) -> list[str]:
    """Return the message and the hint of a command that is the user's error."""
    assert main(list(words)) == 2
    lines = capsys.readouterr().err.splitlines()
    return [line.partition(": ")[2] for line in lines if line.startswith(("error: ", "hint: "))]


def test_w4a8_runs_on_int8_kernels_everywhere(results: Callable[..., Path]) -> None:
    pytest.importorskip("openvino", reason="runs the exported files")
    document = report_of(results("--scheme", "w4a8"))
    assert document["bits"] == {"0": [8, 8], "3": [4, 8], "8": [8, 8]}
    assert set(document["targets"]) == {"onnxruntime", "openvino", "tensorrt"}
    for name, target in document["targets"].items():
        assert target["status"] == "ok", target["failure"]
        assert target["match"] in (100.0, None)
        assert target["integer_layers"] == target["weighted_layers"] == 3
        assert [layer["precision"] for layer in target["layers"]] in (["int8"] * 3, [])
        told = "size as W8A8" if name == "tensorrt" else "the gain is size"
        assert told in target["notes"][0]
    assert document["targets"]["openvino"]["executed"] is True
    assert document["targets"]["onnxruntime"]["executed"] is True


def test_narrow_ends_are_smaller(results: Callable[..., Path]) -> None:
    words = ("--scheme", "w4a8", "--end-bits", "4", "--targets", "onnxruntime")
    document = report_of(results(*words))
    assert document["bits"] == {"0": [4, 8], "3": [4, 8], "8": [4, 8]}
    stored = {
        tensor.name: len(tensor.raw_data)
        for tensor in onnx.load(results(*words) / "onnxruntime/model.onnx").graph.initializer
    }
    counts = {"0": 8 * 3 * 9, "3": 16 * 8 * 9, "8": 4 * 16}
    assert {name: stored[f"{name}.weight.codes"] for name in counts} == {
        name: count / 2 for name, count in counts.items()
    }
    assert document["recipe"]["end_bits"] == 4


def test_bits_of_single_layers_come_from_an_edited_recipe(
    results: Callable[..., Path], tmp_path: Path, tiny: Path, capsys: Capture
) -> None:
    recipe = json.loads((results("--scheme", "w4a8") / "recipe.json").read_text(encoding="utf-8"))
    recipe["targets"] = ["onnxruntime"]
    assert (recipe["end_bits"], recipe["bits"]) == (8, {})
    path = tiny / "edited.json"

    def replay(bits: dict[str, list[int]], out: str) -> tuple[str, ...]:
        path.write_text(json.dumps({**recipe, "bits": bits}), encoding="utf-8")
        return (*ARCH, "--recipe", str(path), "--out", out)

    assert main(list(replay({"8": [4, 8], "3": [6, 8]}, "out"))) == 0
    document = report_of(tmp_path / "out")
    assert document["bits"] == {"0": [8, 8], "3": [6, 8], "8": [4, 8]}
    assert document["targets"]["onnxruntime"]["integer_layers"] == 3
    capsys.readouterr()

    message, hint = refused(replay({"fc": [4, 8]}, "other"), capsys)
    assert message == "bit widths for 'fc': the network has no such layer"
    assert hint == "its layers: 0, 3, 8"
    message, hint = refused(replay({"3": [4, 5]}, "other"), capsys)
    assert message == "layer '3': target 'onnxruntime' does not run activations of 5 bits"
    assert hint == 'nearest possible: "bits": {"3": [4, 8]}'
    assert not (tmp_path / "other").exists()


@pytest.fixture(scope="module")
def simulated(results: Callable[..., Path]) -> Path:
    return results("--scheme", "w4a4")


def test_w4a4_is_simulated_and_says_so(simulated: Path) -> None:
    document = report_of(simulated)
    assert list(document["targets"]) == ["simulation"]
    target = document["targets"]["simulation"]
    assert (target["status"], target["executed"], target["passed"]) == ("ok", False, True)
    assert target["reason"] == REASON
    assert (target["integer_layers"], target["weighted_layers"], target["layers"]) == (0, 3, [])
    assert target["match"] in (100.0, None)
    assert document["bits"] == {"0": [8, 8], "3": [4, 4], "8": [8, 8]}
    (entry,) = read_manifest(simulated).targets
    assert (entry.name, entry.executed, entry.reason) == ("simulation", False, REASON)


def test_w4a4_has_no_latency(simulated: Path, capsys: Capture) -> None:
    for words in ((), ("--targets", "simulation")):
        message, hint = refused(("bench", str(simulated), *words), capsys)
        assert message == f"'{simulated}': target 'simulation' has no latency ({REASON})"
        assert "--scheme w4a8" in hint
    with pytest.raises(UnsupportedError, match="has no latency"):
        bench([simulated])


def test_w4a4_is_evaluated_by_simulation(simulated: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(12) % 4)
    score = evaluate(simulated, tmp_path / "data.npz").targets["simulation"]
    assert (score.executed, score.n) == (False, 12)
    assert "no runtime executes" in str(score.reason)
    with pytest.raises(UnsupportedError, match="no runtime executes"):
        open_artifact(simulated, "simulation")


def test_inspection_shows_the_bits(
    results: Callable[..., Path], simulated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    document = inspect_result(simulated).to_dict()
    assert [layer["bits"] for layer in document["layers"]] == [[8, 8], [4, 4], [8, 8]]
    assert {layer["precision"]["simulation"] for layer in document["layers"]} == {"simulated"}
    text = result_inspection(document)
    assert "4/4" in text
    assert "0 of 3 layers in INT8 (simulated in float)" in text
    one = inspect_result(results("--scheme", "w4a8")).to_dict()
    assert [layer["bits"] for layer in one["layers"]] == [[8, 8], [4, 8], [8, 8]]
    assert {layer["precision"]["onnxruntime"] for layer in one["layers"]} == {"int8"}


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (
            ("--scheme", "w4a4", "--targets", "simulation,openvino"),
            "target 'openvino' does not run scheme 'w4a4': it takes activations of 8 or 16 bits, "
            "not 4",
            "nearest possible: --scheme w4a8; or leave out --targets",
        ),
        (
            ("--targets", "simulation"),
            "target 'simulation' does not run scheme 'w8a8': it takes activations of 2 to 7 bits, "
            "not 8",
            "nearest possible: --scheme w4a4; or leave out --targets",
        ),
        (
            ("--end-bits", "4"),
            "end bits 4: with scheme 'w8a8' the first and last layers take 8 bits",
            "nearest possible: --end-bits 8",
        ),
        (
            ("--scheme", "w4a8", "--end-bits", "2"),
            "end bits 2: with scheme 'w4a8' the first and last layers take 4 to 8 bits",
            "nearest possible: --end-bits 4",
        ),
        (("--scheme", "w3a3"), "unknown scheme 'w3a3'", None),
    ],
)
def test_what_cannot_be_had_names_the_nearest(
    words: tuple[str, ...], message: str, hint: str | None, tiny: Path, capsys: Capture
) -> None:
    before = set(tiny.iterdir())
    got, advice = refused((*QUANTIZE, *words, "--out", "out"), capsys)
    assert got == message
    assert hint is None or advice == hint
    assert set(tiny.iterdir()) == before


def test_recipe_fixes_the_ends(results: Callable[..., Path], tiny: Path, capsys: Capture) -> None:
    recipe = results("--scheme", "w4a4") / "recipe.json"
    words = (*ARCH, "--recipe", str(recipe), "--end-bits", "4")
    message, _ = refused(words, capsys)
    assert message == "--recipe fixes --end-bits already"
    assert not (tiny / "tiny-w4a4").exists()
