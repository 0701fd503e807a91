"""The whole job on a tiny network: layout, hashes, replay, and failures that stay apart."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import edgekit
from edgekit.errors import (
    CalibrationError,
    CaptureError,
    ConfigError,
    ExportError,
    OutputError,
    UnsupportedError,
    VerificationError,
)
from edgekit.exporters.onnxruntime import OnnxRuntimeTarget
from edgekit.exporters.openvino import OpenVinoTarget
from edgekit.exporters.tensorrt import TensorRtTarget
from edgekit.manifest import read_manifest, verify_files
from edgekit.options import InputOption
from edgekit.pipeline import raise_for_failures
from edgekit.recipe import Recipe, read_recipe
from edgekit.registry import RUNNERS
from edgekit.report import Report
from edgekit.runners import open_artifact
from edgekit.target_choice import usable_targets
from edgekit.types import Artifact, Effort, LayerBits, Preprocessing, Task

onnx = pytest.importorskip("onnx", reason="reads the exported files")
pytest.importorskip("onnxruntime", reason="runs the exported files")
pytest.importorskip("openvino", reason="runs the exported files")

IMAGE = (InputOption(None, (1, 3, 32, 32)),)
FIVE_CHANNELS = (InputOption(None, (1, 5, 32, 32)),)
HALF = Preprocessing((0.5,), (0.5,))


def run(folder: Path, out: Path, **options: Any) -> Report:
    """Quantize `tiny.pt`; the architecture comes from the current directory."""
    if "recipe" not in options:
        options = {"arch": "tiny:build", "inputs": IMAGE, "preprocessing": HALF} | options
        options.setdefault("task", Task.CLASSIFICATION)
        options.setdefault("effort", Effort.INSTANT)  # seconds less
    return edgekit.quantize(folder / "tiny.pt", out=out, **options)


@pytest.fixture(scope="module")
def result(
    tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Report, list[tuple[str, float]]]]:
    """One result with all targets, engines included where a builder is installed."""
    out = tmp_path_factory.mktemp("pipeline") / "result"
    seen: list[tuple[str, float]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tiny_folder)
        patch.delitem(sys.modules, "tiny", raising=False)
        report = run(tiny_folder, out, progress=lambda stage, done: seen.append((stage, done)))
    yield out, report, seen
    shutil.rmtree(out)


def files_of(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def test_result_has_every_file(result: tuple[Path, Report, object]) -> None:
    out, report, _ = result
    assert report.failures == {}
    engines = {path for path in files_of(out) if path.endswith(".plan")}
    assert files_of(out) - engines == {
        "manifest.json",
        "recipe.json",
        "report.json",
        "quantized.safetensors",
        "float/model.onnx",
        "onnxruntime/model.onnx",
        "openvino/model.xml",
        "openvino/model.bin",
        "tensorrt/model.onnx",
    }
    assert all(path.startswith("tensorrt/engine.") for path in engines)
    assert not [path for path in out.parent.iterdir() if path != out], "working folder left over"


def test_manifest_lists_and_hashes_every_file(result: tuple[Path, Report, object]) -> None:
    out, report, _ = result
    manifest = read_manifest(out)
    verify_files(out, manifest.all_files)
    listed = {entry.path for entry in manifest.all_files}
    assert files_of(out) - listed == {"manifest.json", "report.json"}
    assert [entry.name for entry in manifest.targets] == list(RUNNERS)
    assert [spec.shape for spec in manifest.inputs] == [(1, 3, 32, 32)]
    assert [(spec.name, spec.shape) for spec in manifest.outputs] == [("output", (1, 4))]
    assert (manifest.task, manifest.scheme) == (Task.CLASSIFICATION, "w8a8")
    assert manifest.preprocessing == HALF
    executed = {entry.name: entry.executed for entry in manifest.targets}
    assert executed == {"onnxruntime": True, "openvino": True, "tensorrt": False}
    assert report.recipe.edgekit == manifest.edgekit_version == edgekit.__version__


def test_report_tells_what_ran(result: tuple[Path, Report, object]) -> None:
    out, report, _ = result
    document = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert document["model"]["file"] == "tiny.pt"
    assert document["recipe"] == json.loads((out / "recipe.json").read_text(encoding="utf-8"))
    assert set(document["targets"]) == set(RUNNERS)
    for name, target in document["targets"].items():
        assert target["status"] == "ok"
        assert target["match"] in (100.0, None)
        assert target["simulation_sqnr_db"] is None or target["simulation_sqnr_db"] >= 20
        assert target["integer_layers"] == target["weighted_layers"] == 3
        assert target["float_layers"] == {}
        sizes = target["files"]
        assert sizes == {path: (out / path).stat().st_size for path in sizes}
        assert report.verifications[name].passed
    seconds = document["seconds"]
    stages = ("load", "capture", "calibrate", "quantize", "export", "verify")
    assert set(seconds) == {*stages, "total"}
    assert seconds["total"] >= sum(seconds[stage] for stage in stages) - 0.1
    raise_for_failures(report)  # nothing to raise


def test_progress_only_grows_and_ends_at_one(
    result: tuple[Path, Report, list[tuple[str, float]]],
) -> None:
    _, _, seen = result
    fractions = [done for _, done in seen]
    assert fractions == sorted(fractions)
    assert seen[-1] == ("done", 1.0)
    assert {stage for stage, _ in seen} >= {"load", "capture", "calibrate", "export", "verify"}


def test_float_reference_is_the_users_network(
    result: tuple[Path, Report, object], tiny_folder: Path
) -> None:
    out, _, _ = result
    names: dict[str, Any] = {}
    exec((tiny_folder / "tiny.py").read_text(encoding="utf-8"), names)
    network = names["build"]().eval()
    network.load_state_dict(torch.load(tiny_folder / "tiny.pt", weights_only=True))
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(out / "float" / "model.onnx")
    name = session.get_inputs()[0].name
    (got,) = session.run(None, {name: images.numpy()})
    with torch.no_grad():
        # folding and equalizing move factors between layers: float32 rounding, 1e-6 relative each
        assert got == pytest.approx(network(images).numpy(), abs=1e-4)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_artifacts_open_by_their_names_and_agree(
    result: tuple[Path, Report, object], target: str
) -> None:
    out, _, _ = result
    images = np.random.default_rng(0).uniform(-1, 1, (6, 3, 32, 32)).astype(np.float32)
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(out / "float" / "model.onnx")
    name = session.get_inputs()[0].name
    (reference,) = session.run(None, {name: images})
    with open_artifact(out, target, threads=1) as runner:
        got = runner.infer({name: images})["output"]
    # 8 bits in three layers: about 1 % of noise; uniform noise is not what it was calibrated for
    assert np.linalg.norm(got - reference) < 0.1 * np.linalg.norm(reference)


def test_codes_are_stored_as_integers(result: tuple[Path, Report, object]) -> None:
    from safetensors.torch import load_file

    out, _, _ = result
    tensors = load_file(out / "quantized.safetensors")
    names = {name.rsplit(".", 1)[0] for name in tensors}
    assert names == {"0", "3", "8"}
    for name in names:
        codes, scale = tensors[f"{name}.codes"], tensors[f"{name}.scale"]
        assert codes.dtype == torch.int8
        assert codes.shape[0] == scale.shape[0]
        assert int(codes.abs().amax()) == 127


def test_recipe_replays_to_the_same_bytes(
    result: tuple[Path, Report, object],
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, report, _ = result
    recipe = read_recipe(out / "recipe.json")
    assert recipe == report.recipe
    # engines are excepted: builders do not promise the same bytes
    monkeypatch.setattr("edgekit.exporters.tensorrt.find_builder", lambda: None)
    again = tmp_path / "again"
    run(tiny, again, recipe=recipe, arch="tiny:build")
    compared = {path for path in files_of(out) if not path.endswith(".plan")}
    compared -= {"manifest.json", "report.json"}  # they list engines and times
    assert compared <= files_of(again)
    for path in sorted(compared):
        assert (again / path).read_bytes() == (out / path).read_bytes(), path


class BrokenBuild:
    """An export whose slow part fails."""

    def wait(self) -> Artifact:
        raise ExportError("the builder gave up")

    def close(self) -> None:
        pass


def test_failed_exports_leave_the_others(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: OpenVinoTarget, _template: object, _lowered: object, directory: Path) -> None:
        folder = directory / self.name
        folder.mkdir()
        (folder / "half.xml").write_text("half")
        raise UnsupportedError("no form of operator Fancy")

    monkeypatch.setattr(OpenVinoTarget, "export", refuse)
    monkeypatch.setattr(TensorRtTarget, "export", lambda *_: BrokenBuild())
    out = tmp_path / "out"
    report = run(tiny, out)
    assert report.failures == {
        "openvino": "no form of operator Fancy",
        "tensorrt": "the builder gave up",
    }
    assert not (out / "openvino").exists()
    assert (out / "onnxruntime/model.onnx").exists()
    assert [entry.name for entry in read_manifest(out).targets] == ["onnxruntime"]
    document = json.loads((out / "report.json").read_text(encoding="utf-8"))
    status = {name: target["status"] for name, target in document["targets"].items()}
    assert status == {"onnxruntime": "ok", "openvino": "failed", "tensorrt": "failed"}
    with pytest.raises(VerificationError, match="openvino: no form of") as caught:
        raise_for_failures(report)
    assert caught.value.exit_code == 1


def test_artifact_that_differs_from_its_simulation_is_removed(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = OnnxRuntimeTarget.export

    def damaged(self: OnnxRuntimeTarget, template: Any, lowered: Any, directory: Path) -> Any:
        pending = export(self, template, lowered, directory)
        path = directory / "onnxruntime" / "model.onnx"
        proto = onnx.load(path)
        (tensor,) = (t for t in proto.graph.initializer if t.name == "8.weight.codes")
        codes = -onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(codes, tensor.name))
        onnx.save(proto, path)
        return pending

    monkeypatch.setattr(OnnxRuntimeTarget, "export", damaged)
    out = tmp_path / "out"
    report = run(tiny, out, targets=["onnxruntime", "openvino"])
    assert set(report.failures) == {"onnxruntime"}
    assert "differs from its simulation" in report.failures["onnxruntime"]
    assert not (out / "onnxruntime").exists()
    assert (out / "openvino/model.xml").exists()
    verify_files(out, read_manifest(out).all_files)
    document = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert document["targets"]["onnxruntime"]["failure"] == report.failures["onnxruntime"]


def test_agreement_that_is_asked_for_and_not_reached(tiny: Path, tmp_path: Path) -> None:
    report = run(
        tiny,
        tmp_path / "out",
        targets=["onnxruntime"],
        task=Task.OTHER,  # whose agreement is 100 only where outputs are equal
        min_agreement=100.0,
    )
    assert report.failures == {}
    with pytest.raises(VerificationError, match="100 % was asked for"):
        raise_for_failures(report)
    assert (tmp_path / "out/onnxruntime/model.onnx").exists()  # the user decides what to do


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"targets": ["onnxruntime", "onnxruntime"]}, ConfigError),
        ({"targets": ["teapot"]}, ConfigError),
        ({"targets": []}, ConfigError),
        ({"scheme": "w1a1"}, ConfigError),
        ({"scheme": "w4a4", "targets": ["onnxruntime"]}, UnsupportedError),
        ({"scheme": "w4a8", "targets": ["simulation"]}, UnsupportedError),
        ({"scheme": "w4a8", "end_bits": 3}, ConfigError),
        ({"end_bits": 4}, ConfigError),
        ({"bits": {"nowhere": LayerBits(4, 8)}}, ConfigError),
        ({"bits": {"3": LayerBits(4, 4)}}, UnsupportedError),
        ({"calibration": "tarot"}, ConfigError),
        ({"calibration": "images"}, ConfigError),
        ({"min_agreement": 101.0}, ConfigError),
        ({"device": "abacus"}, ConfigError),
        ({"inputs": FIVE_CHANNELS, "preprocessing": None}, CaptureError),
    ],
    ids=lambda value: str(value)[:30],
)
def test_users_error_leaves_nothing_behind(
    tiny: Path, tmp_path: Path, options: dict[str, Any], error: type[Exception]
) -> None:
    before = files_of(tmp_path)
    with pytest.raises(error) as caught:
        run(tiny, tmp_path / "out", **options)
    assert str(caught.value)
    assert not (tmp_path / "out").exists()
    assert {path for path in files_of(tmp_path) if "__pycache__" not in path} == before


def test_output_directory_must_not_exist(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists"):
        run(tiny, tmp_path / "out", targets=["onnxruntime"])
    assert list((tmp_path / "out").iterdir()) == []


def test_network_that_overflows_is_a_calibration_error(tiny: Path, tmp_path: Path) -> None:
    state = torch.load(tiny / "tiny.pt", weights_only=True)
    state["8.weight"] = torch.full_like(state["8.weight"], 3e38)
    torch.save(state, tiny / "tiny.pt")
    with pytest.raises(CalibrationError, match="not finite"):
        run(tiny, tmp_path / "out", targets=["onnxruntime"])
    assert not (tmp_path / "out").exists()


def test_usable_targets() -> None:
    assert usable_targets(None, "w8a8") == tuple(RUNNERS)
    assert usable_targets(["tensorrt", "onnxruntime"], "w8a8") == ("tensorrt", "onnxruntime")
    assert usable_targets(None, "w4a8") == usable_targets(None, "w8a8")
    assert usable_targets(None, "w4a4") == ("simulation",)


def test_recipe_of_another_file_and_seed(
    result: tuple[Path, Report, object], tiny: Path, tmp_path: Path
) -> None:
    out, report, _ = result
    recipe: Recipe = replace(report.recipe, model_sha256="0" * 64, targets=("onnxruntime",), seed=5)
    other = tmp_path / "other"
    found = run(tiny, other, recipe=recipe, arch="tiny:build")
    notes: list[str] = found.document["model"]["notes"]
    assert [note for note in notes if "made for another model file" in note]
    file = "onnxruntime/model.onnx"
    assert (other / file).read_bytes() != (out / file).read_bytes()  # the seed decides the ranges


def test_export_writes_chosen_targets(
    quantize_module: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.exporters.tensorrt.find_builder", lambda: None)
    model = quantize_module(torch.nn.Conv2d(3, 4, 3), (3, 8, 8))
    artifacts = edgekit.export(model, tmp_path, targets=[TensorRtTarget.name, "onnxruntime"])
    assert [artifact.target for artifact in artifacts] == ["tensorrt", "onnxruntime"]
    assert files_of(tmp_path) == {path for artifact in artifacts for path in artifact.files}


def test_export_refuses_widths_that_a_target_does_not_run(
    quantize_module: Callable[..., Any], tmp_path: Path
) -> None:
    layer = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    model = quantize_module(layer, (3, 8, 8), bits={"0": LayerBits(4, 4)})
    with pytest.raises(UnsupportedError, match="layer '0': target 'onnxruntime' does not run"):
        edgekit.export(model, tmp_path, targets=["onnxruntime"])
    assert files_of(tmp_path) == set()
