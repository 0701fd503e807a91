"""What is timed: variants of runtimes, the network's own file, names of precisions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.bench import Network, bench
from edgekit.bench.lanes import plan_lanes, precision_of
from edgekit.errors import ConfigError, LoadError, UnsupportedError
from edgekit.manifest import FileEntry, Manifest, TargetEntry, write_manifest
from edgekit.registry import ARTIFACT_OF, RUNNERS, TARGETS, VARIANTS
from edgekit.runners.run_options import NetworkOptions
from edgekit.types import SCHEMES, Cpu, InputSpec, OutputSpec, Task

INPUT = InputSpec("x", (1, 3, 8, 8))


def write_result(folder: Path, scheme: str = "w8a8") -> Manifest:
    """A result directory of empty files, for planning only."""
    files = ("onnxruntime/model.onnx", "openvino/model.xml", "tensorrt/model.onnx")
    entries = []
    for path in files:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(path.encode())
        entry = FileEntry.of(folder, path)
        entries.append(TargetEntry(path.split("/")[0], path, (entry,), True))
    (folder / "float").mkdir()
    (folder / "float/model.onnx").write_bytes(b"float")
    (folder / "net.pt").write_bytes(b"weights")
    recipe = {"model_sha256": FileEntry.of(folder, "net.pt").sha256, "arch": "tiny:build"}
    (folder / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    manifest = Manifest(
        edgekit_version="0",
        task=Task.OTHER,
        inputs=(INPUT,),
        outputs=(OutputSpec("y", (1, 4)),),
        preprocessing=None,
        num_classes=None,
        scheme=scheme,
        cpu=Cpu.AVX2,
        targets=tuple(entries),
        files=(FileEntry.of(folder, "float/model.onnx"),),
    )
    write_manifest(manifest, folder)
    return manifest


def test_variant_opens_the_artifact_of_its_target(tmp_path: Path) -> None:
    write_result(tmp_path)
    lanes = plan_lanes([tmp_path], ["onnxruntime-cuda", "onnxruntime-tensorrt"], {})
    assert [(lane.name, lane.model.relative_to(tmp_path).as_posix()) for lane in lanes] == [
        ("onnxruntime-cuda float", "float/model.onnx"),
        ("onnxruntime-cuda int8", "onnxruntime/model.onnx"),
        ("onnxruntime-tensorrt float", "float/model.onnx"),
        ("onnxruntime-tensorrt int8", "tensorrt/model.onnx"),
    ]
    assert [lane.baseline for lane in lanes] == [
        None,
        "onnxruntime-cuda float",
        None,
        "onnxruntime-tensorrt float",
    ]


def test_default_is_what_the_result_holds_and_all_is_everything(tmp_path: Path) -> None:
    write_result(tmp_path)
    default = {lane.target for lane in plan_lanes([tmp_path], None, {})}
    assert default == set(RUNNERS)
    everything = {lane.target for lane in plan_lanes([tmp_path], ["all"], {})}
    assert everything == {*RUNNERS, *ARTIFACT_OF}
    network = Network(tmp_path / "net.pt")
    with_torch = {lane.target for lane in plan_lanes([tmp_path], ["all"], {}, network)}
    assert with_torch == {*RUNNERS, *VARIANTS}
    with pytest.raises(ConfigError, match="'all' stands alone"):
        plan_lanes([tmp_path], ["all", "torch"], {})


def test_torch_runs_the_file_that_was_quantized(tmp_path: Path) -> None:
    write_result(tmp_path)
    with pytest.raises(ConfigError, match="from its own file") as caught:
        plan_lanes([tmp_path], ["torch"], {})
    assert "--network" in caught.value.hint
    (lane,) = plan_lanes([tmp_path], ["torch"], {}, Network(tmp_path / "net.pt"))
    assert (lane.name, lane.precision, lane.model) == ("torch float", "float", tmp_path / "net.pt")
    # What the result knows completes what the user says.
    assert lane.network == NetworkOptions("tiny:build", inputs=(INPUT,))
    stated = Network(tmp_path / "net.pt", NetworkOptions("other:build", "ema", True))
    (lane,) = plan_lanes([tmp_path], ["torch"], {}, stated)
    assert lane.network == replace(stated.options, inputs=(INPUT,))


def test_another_file_is_refused(tmp_path: Path) -> None:
    write_result(tmp_path)
    (tmp_path / "other.pt").write_bytes(b"other weights")
    with pytest.raises(ConfigError, match="is not the file that"):
        plan_lanes([tmp_path], ["torch"], {}, Network(tmp_path / "other.pt"))
    with pytest.raises(LoadError, match="does not exist"):
        plan_lanes([tmp_path], ["torch"], {}, Network(tmp_path / "absent.pt"))


def test_file_of_weights_is_timed_in_torch(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(b"weights")
    options = NetworkOptions("tiny:build", inputs=(INPUT,))
    (lane,) = plan_lanes([tmp_path / "net.pt"], None, {}, file_options=options)
    assert (lane.target, lane.precision, lane.network) == ("torch", "file", options)
    with pytest.raises(ConfigError, match=r"onnxruntime does not open '\.pt' files"):
        plan_lanes([tmp_path / "net.pt"], ["onnxruntime"], {})


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name != "w4a4"])
def test_lanes_are_called_by_their_scheme(tmp_path: Path, scheme: str) -> None:
    write_result(tmp_path, scheme)
    lanes = plan_lanes([tmp_path], ["openvino"], {})
    expected = "int8" if scheme == "w8a8" else scheme
    assert [lane.precision for lane in lanes] == ["float", expected]
    assert lanes[1].name == f"openvino {expected}"
    assert precision_of(scheme) == expected


def test_variants_are_no_targets_and_open_existing_ones() -> None:
    assert not set(VARIANTS) & (set(TARGETS) | set(RUNNERS))
    assert set(ARTIFACT_OF) <= set(VARIANTS)
    assert set(ARTIFACT_OF.values()) <= set(RUNNERS)


def test_device_without_the_parts_for_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where edgekit.torch_runner is left out, files of other runtimes are planned as ever."""
    monkeypatch.setitem(__import__("sys").modules, "edgekit.torch_runner", None)
    (tmp_path / "net.onnx").write_bytes(b"x")
    assert {lane.target for lane in plan_lanes([tmp_path / "net.onnx"], None, {})} == {
        "onnxruntime",
        "openvino",
    }
    (tmp_path / "net.pt").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"no runtime opens '\.pt'"):
        plan_lanes([tmp_path / "net.pt"], None, {})


def test_named_lane_that_cannot_run_is_an_error_and_others_are_told(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    if any(name.startswith("GPU") for name in openvino.Core().available_devices):
        pytest.skip("this machine has an Intel GPU")
    x = openvino.opset13.parameter([1, 4], name="x")
    openvino.save_model(openvino.Model([openvino.opset13.relu(x)], [x]), tmp_path / "net.xml")
    with pytest.raises(UnsupportedError, match="no Intel GPU"):
        bench([tmp_path / "net.xml"], targets=["openvino-gpu"], blocks=2)
    report = bench(
        [tmp_path / "net.xml"], targets=["all"], blocks=2, block_seconds=0.01, warmup_seconds=0.0
    )
    assert [result.lane.target for result in report.lanes] == ["openvino"]
    assert "no Intel GPU" in report.skipped["net.xml openvino-gpu"]
