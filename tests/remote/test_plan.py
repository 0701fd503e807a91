"""Which files go to a device, and what is built from them there."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import ConfigError, LoadError, UnsupportedError
from edgekit.manifest import FileEntry, TargetEntry, read_manifest, write_manifest
from edgekit.remote.device_part import DevicePart
from edgekit.remote.plan import Build, plan_bench
from edgekit.remote.run import bench_on_device


@pytest.fixture
def with_engine(result_dir: Path, tmp_path: Path) -> Path:
    """A result that has also a target with an engine of another machine."""
    folder = tmp_path / "out"
    shutil.copytree(result_dir, folder)
    (folder / "tensorrt").mkdir()
    (folder / "tensorrt/model.onnx").write_bytes(b"an ONNX file")
    (folder / "tensorrt/engine.sm86.plan").write_bytes(b"an engine for SM86")
    names = ("tensorrt/model.onnx", "tensorrt/engine.sm86.plan")
    entry = TargetEntry(
        "tensorrt",
        names[0],
        tuple(FileEntry.of(folder, name) for name in names),
        False,
        "no GPU",
        (names[1],),
    )
    manifest = read_manifest(folder)
    write_manifest(replace(manifest, targets=(*manifest.targets, entry)), folder)
    return folder


def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def test_engines_stay_here_and_are_built_there(with_engine: Path, tmp_path: Path) -> None:
    plan = plan_bench([with_engine], None, {}, scratch(tmp_path))
    sent = {upload.target: upload.source for upload in plan.uploads}
    base = "artifacts/0/out"
    assert sorted(sent) == [
        f"{base}/float/model.onnx",
        f"{base}/manifest.json",
        f"{base}/onnxruntime/model.onnx",
        f"{base}/tensorrt/model.onnx",
    ]
    assert plan.builds == (Build(f"{base}/tensorrt/model.onnx", f"{base}/tensorrt/engine.plan"),)
    assert plan.paths == {base: str(with_engine)}
    # What the device gets is a valid result without the engine.
    manifest = read_manifest(sent[f"{base}/manifest.json"].parent)
    assert [entry.name for entry in manifest.targets] == ["onnxruntime", "tensorrt"]
    assert [file.path for file in manifest.all_files] == [
        "float/model.onnx",
        "onnxruntime/model.onnx",
        "tensorrt/model.onnx",
    ]


def test_only_what_the_device_runs_is_copied(with_engine: Path, tmp_path: Path) -> None:
    problems = {"tensorrt": "no tensorrt there"}
    plan = plan_bench([with_engine], None, problems, scratch(tmp_path))
    assert plan.builds == ()
    assert not any("tensorrt" in upload.target for upload in plan.uploads)
    assert plan.skipped == {"tensorrt int8": "no tensorrt there"}


def test_wanted_target_alone(with_engine: Path, tmp_path: Path) -> None:
    plan = plan_bench([with_engine], ["tensorrt"], {}, scratch(tmp_path))
    assert [upload.target.rpartition("/")[2] for upload in plan.uploads] == [
        "manifest.json",
        "model.onnx",
    ]
    assert plan.targets == ("tensorrt",)


def test_device_that_runs_nothing_of_it(with_engine: Path, tmp_path: Path) -> None:
    problems = {"tensorrt": "no GPU", "onnxruntime": "not installed"}
    with pytest.raises(UnsupportedError, match="not installed; no GPU"):
        plan_bench([with_engine], None, problems, scratch(tmp_path))


def test_wrong_paths_are_refused_as_they_are_here(with_engine: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no target 'openvino'"):
        plan_bench([with_engine], ["openvino"], {}, scratch(tmp_path))
    (with_engine / "onnxruntime/model.onnx").write_bytes(b"cut")
    with pytest.raises(LoadError, match="the manifest says"):
        plan_bench([with_engine], None, {}, tmp_path)


def test_companions_of_a_file_go_with_it(result_dir: Path, tmp_path: Path) -> None:
    xml = tmp_path / "net.xml"
    xml.write_text("<net/>", encoding="utf-8")
    xml.with_suffix(".bin").write_bytes(b"weights")
    (tmp_path / "other.bin").write_bytes(b"somebody else's")
    plan = plan_bench([xml], ["openvino"], {}, tmp_path)
    assert [upload.target for upload in plan.uploads] == [
        "artifacts/0/net.xml",
        "artifacts/0/net.bin",
    ]


def test_timings_of_a_build_are_kept_for_the_next_one(
    server: Any, with_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # There is no TensorRT here: what is tested is the way of its timings, there and back.
    seen: list[bytes | None] = []

    def ask(self: DevicePart, command: str, request: Any, *_rest: object) -> dict[str, Any]:
        if command == "bench":
            return {"skipped": {}, "notes": [], "lanes": [], "comparisons": []}
        assert command == "build"
        assert set(request) == {"model", "out", "timing_cache"}
        folder = Path(self._workspace.path)
        assert (folder / request["model"]).read_bytes() == b"an ONNX file"
        timings = folder / request["timing_cache"]
        seen.append(timings.read_bytes() if timings.exists() else None)
        timings.write_bytes(b"timings %d" % len(seen))
        return {"engine": request["out"], "version": "10.3.0", "seconds": 9.0}

    monkeypatch.setattr(DevicePart, "ask", ask)
    options = {"targets": ["tensorrt"]}
    fractions: list[float] = []
    for _ in range(2):
        document = bench_on_device(
            [with_engine],
            server.device(),
            options,
            progress=lambda _stage, fraction: fractions.append(fraction),
        )
        (engine,) = document["device"]["engines"]
        assert engine["version"] == "10.3.0"
    assert seen == [None, b"timings 1"]
    first = fractions[: fractions.index(1.0) + 1]
    assert first == sorted(first)
