"""Evaluation of a small result directory, made by hand so that every figure is known.

The network is a mean over the picture: three logits, one for each colour channel. A target whose
green logit is raised takes dark red pictures for green ones.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import ConfigError, LoadError, UnsupportedError
from edgekit.evaluate import EvaluationReport, TargetScore, evaluate
from edgekit.manifest import FileEntry, Manifest, TargetEntry, read_manifest, write_manifest
from edgekit.types import Cpu, InputSpec, OutputSpec, Preprocessing, Task

onnx = pytest.importorskip("onnx", reason="the test networks are built with onnx")
openvino = pytest.importorskip("openvino", reason="openvino is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

BRIGHT, DARK = 200, 40
RAISE = 0.25  # of the range: more than DARK / 255, less than BRIGHT / 255


def _mean_network(path: Path, raised: float, *, qdq: bool = False, batch: str | int = "b") -> None:
    """``image [N, 3, 4, 4]`` to ``logits [N, 3]``: channel means, green raised."""
    helper = onnx.helper
    constants = {"bias": np.array([0, raised, 0], np.float32)}
    nodes = []
    source = "image"
    if qdq:  # signed with zero point 0, as TensorRT wants it
        constants |= {"scale": np.float32(1 / 127), "zero": np.int8(0)}
        nodes = [
            helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
        ]
        source = "dq"
    nodes += [
        helper.make_node("GlobalAveragePool", [source], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["means"]),
        helper.make_node("Add", ["means", "bias"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mean",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [batch, 3, 4, 4])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [batch, 3])],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def _entry(root: Path, name: str, *files: str, **extra: Any) -> TargetEntry:
    entries = tuple(FileEntry.of(root, f"{name}/{file}") for file in files)
    return TargetEntry(name, entries[0].path, entries, executed=name != "tensorrt", **extra)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("result")
    _mean_network(root / "float/model.onnx", 0.0)
    _mean_network(root / "onnxruntime/model.onnx", RAISE)
    _mean_network(root / "tensorrt/model.onnx", 0.0, qdq=True)
    ir = openvino.Core().read_model(root / "float/model.onnx")
    openvino.save_model(ir, root / "openvino/model.xml", compress_to_fp16=False)
    manifest = Manifest(
        edgekit_version="0",
        task=Task.CLASSIFICATION,
        inputs=(InputSpec("image", (1, 3, 4, 4)),),
        outputs=(OutputSpec("logits", (1, 3)),),
        preprocessing=Preprocessing(crop=4),
        num_classes=3,
        scheme="w8a8",
        cpu=Cpu.VNNI,
        targets=(
            _entry(root, "onnxruntime", "model.onnx"),
            _entry(root, "openvino", "model.xml", "model.bin"),
            _entry(root, "tensorrt", "model.onnx", reason="no GPU"),
        ),
        files=(FileEntry.of(root, "float/model.onnx"),),
    )
    write_manifest(manifest, root)
    return root


@pytest.fixture
def result_dir(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(made, tmp_path / "result")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures sorted by class: 4 red (2 of them dark), 3 green, 3 blue of which 1 is green."""
    shown = [0, 0, 0, 0, 1, 1, 1, 2, 2, 1]
    labels = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    images = np.zeros((10, 5, 6, 3), np.uint8)
    for index, channel in enumerate(shown):
        images[index, :, :, channel] = DARK if index in (1, 3) else BRIGHT
    path = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(path, images=images, labels=np.array(labels))
    return path


def _rewrite(result_dir: Path, **changes: Any) -> Manifest:
    manifest = replace(read_manifest(result_dir), **changes)
    write_manifest(manifest, result_dir)
    return manifest


def test_every_target_gets_its_figures(made: Path, data: Path) -> None:
    report = evaluate(made, data, batch_size=3)
    # The float network sees 9 of 10 right; with green raised the two dark red ones are lost too.
    assert report.float_top1 == 90.0
    assert report.targets["onnxruntime"] == TargetScore(70.0, 80.0, True, None, 10)
    assert report.targets["openvino"] == TargetScore(90.0, 100.0, True, None, 10)
    simulated = report.targets["tensorrt"]
    assert (simulated.top1, simulated.agreement, simulated.n) == (90.0, 100.0, 10)
    assert simulated.executed is False
    assert simulated.reason is not None
    assert "ONNX Runtime instead" in simulated.reason


def test_the_report_is_the_agreed_json(made: Path, data: Path) -> None:
    report = evaluate(made, data, targets=["onnxruntime"])
    assert json.loads(json.dumps(report.to_dict())) == {
        "targets": {
            "onnxruntime": {
                "top1": 70.0,
                "agreement": 80.0,
                "executed": True,
                "reason": None,
                "n": 10,
            }
        },
        "float": {"top1": 90.0},
    }


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_figures_do_not_depend_on_the_batch(made: Path, data: Path, batch_size: int) -> None:
    assert evaluate(made, data, batch_size=batch_size) == evaluate(made, data, batch_size=3)


def test_a_fixed_batch_is_served_one_by_one(result_dir: Path, data: Path) -> None:
    _mean_network(result_dir / "onnxruntime/model.onnx", RAISE, batch=1)
    _rewrite(result_dir, targets=(_entry(result_dir, "onnxruntime", "model.onnx"),))
    report = evaluate(result_dir, data, batch_size=4)
    assert report.targets["onnxruntime"] == TargetScore(70.0, 80.0, True, None, 10)


def test_a_limit_is_spread_over_the_data(made: Path, data: Path) -> None:
    # Pictures 0, 2, 4, 6 and 8 of 10: without the dark ones and the wrong one.
    report = evaluate(made, data, targets=["onnxruntime"], limit=5)
    assert report == EvaluationReport(
        {"onnxruntime": TargetScore(100.0, 100.0, True, None, 5)}, 100.0
    )
    assert evaluate(made, data, targets=["openvino"], limit=99).targets["openvino"].n == 10


def test_progress_ends_at_one(made: Path, data: Path) -> None:
    seen: list[tuple[str, float]] = []
    evaluate(
        made,
        data,
        targets=["onnxruntime"],
        batch_size=4,
        progress=lambda stage, done: seen.append((stage, done)),
    )
    assert seen == [("evaluate", 0.4), ("evaluate", 0.8), ("evaluate", 1.0)]


def test_image_files_of_several_sizes_are_cropped(made: Path, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="opencv is not installed")
    for index, (size, channel) in enumerate([((4, 4), 0), ((9, 5), 1), ((4, 8), 2)]):
        image = np.zeros((*size, 3), np.uint8)
        image[:, :, 2 - channel] = BRIGHT  # OpenCV writes BGR
        cv2.imwrite(str(tmp_path / f"{index}_x.png"), image)
    assert evaluate(made, tmp_path).float_top1 == 100.0


def test_other_tasks_report_agreement_only(result_dir: Path, data: Path) -> None:
    _rewrite(result_dir, task=Task.EMBEDDING, num_classes=None)
    report = evaluate(result_dir, data)
    assert report.float_top1 is None
    assert report.targets["onnxruntime"].top1 is None
    bright, dark = BRIGHT / 255, DARK / 255

    def cosine(value: float) -> float:
        """Between a single channel and the same with green raised."""
        return 100 * value / np.hypot(value, RAISE)

    # 2 bright red, 2 dark red and 2 blue pictures turn; in the 4 green ones green stays alone.
    expected = (4 * cosine(bright) + 2 * cosine(dark) + 4 * 100) / 10
    # The averages of float32 pixels carry 24 bits.
    assert report.targets["onnxruntime"].agreement == pytest.approx(expected, abs=1e-4)


def test_images_of_variable_size_form_batches_of_one_size(result_dir: Path, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="opencv is not installed")
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node("Relu", ["image"], ["out"])],
        "relu",
        [helper.make_tensor_value_info("image", 1, ["b", 3, "h", "w"])],
        [helper.make_tensor_value_info("out", 1, ["b", 3, "h", "w"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    for name in ("float", "onnxruntime"):
        onnx.save(model, result_dir / name / "model.onnx")
    _rewrite(
        result_dir,
        task=Task.IMAGE_TO_IMAGE,
        num_classes=None,
        preprocessing=Preprocessing(),
        inputs=(InputSpec("image", (1, 3, 4, 4), variable_axes=(2, 3)),),
        outputs=(OutputSpec("out", (1, 3, 4, 4)),),
        files=(FileEntry.of(result_dir, "float/model.onnx"),),
        targets=(_entry(result_dir, "onnxruntime", "model.onnx"),),
    )
    for name, size in (("a", (4, 4)), ("b", (4, 4)), ("c", (6, 5))):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((*size, 3), BRIGHT, np.uint8))
    report = evaluate(result_dir, tmp_path)
    assert report.targets["onnxruntime"] == TargetScore(None, 100.0, True, None, 3)


def test_a_target_without_its_runtime_has_no_figures(
    made: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # as if it were not installed
    report = evaluate(made, data)
    assert report.targets["openvino"] == TargetScore(
        None, None, False, "the Python package 'openvino' is not installed", 0
    )
    assert report.targets["onnxruntime"].top1 == 70.0
    with pytest.raises(UnsupportedError, match=r"no target of .* can run here .*openvino"):
        evaluate(made, data, targets=["openvino"])


def test_without_onnx_runtime_openvino_is_the_reference(
    made: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    report = evaluate(made, data)
    assert report.float_top1 == 90.0
    assert report.targets["openvino"] == TargetScore(90.0, 100.0, True, None, 10)
    for name in ("onnxruntime", "tensorrt"):
        score = report.targets[name]
        assert (score.top1, score.agreement, score.executed, score.n) == (None, None, False, 0)
        assert score.reason is not None
        assert "no ONNX Runtime to simulate it" in score.reason


def test_an_artifact_that_does_not_open_stops_no_other(result_dir: Path, data: Path) -> None:
    (result_dir / "openvino/model.xml").write_text("<net", encoding="utf-8")
    entries = (
        _entry(result_dir, "onnxruntime", "model.onnx"),
        _entry(result_dir, "openvino", "model.xml", "model.bin"),
    )
    _rewrite(result_dir, targets=entries)
    report = evaluate(result_dir, data)
    assert report.targets["onnxruntime"].top1 == 70.0
    assert report.targets["openvino"].top1 is None
    assert "OpenVINO cannot open" in str(report.targets["openvino"].reason)


def test_a_changed_file_is_refused(result_dir: Path, data: Path) -> None:
    path = result_dir / "onnxruntime/model.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(LoadError, match=r"onnxruntime/model\.onnx"):
        evaluate(result_dir, data)
    # Only what is run has to be intact.
    assert evaluate(result_dir, data, targets=["openvino"]).float_top1 == 90.0


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"preprocessing": None}, ConfigError, "does not say how images are preprocessed"),
        ({"preprocessing": Preprocessing(crop=3)}, ConfigError, r"\[3, 4, 4\].* made \[3, 3, 3\]"),
        ({"inputs": (InputSpec("ids", (1, 50), "int64"),)}, UnsupportedError, r"ids \[1, 50\]"),
        ({"num_classes": 2}, ConfigError, "label 2 is out of range"),
    ],
    ids=["no-preprocessing", "wrong-size", "no-image", "labels"],
)
def test_what_does_not_fit_the_network_is_refused(
    result_dir: Path, data: Path, changes: dict[str, Any], kind: type[Exception], message: str
) -> None:
    _rewrite(result_dir, **changes)
    with pytest.raises(kind, match=message):
        evaluate(result_dir, data)


def test_wrong_options_are_refused(made: Path, data: Path) -> None:
    with pytest.raises(ConfigError, match="no target 'coreml'"):
        evaluate(made, data, targets=["coreml"])
    with pytest.raises(ConfigError, match="limit must be at least 1"):
        evaluate(made, data, limit=0)
    with pytest.raises(ConfigError, match="batch size must be at least 1"):
        evaluate(made, data, batch_size=0)
