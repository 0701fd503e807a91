from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import ConfigError, LoadError
from edgekit.manifest import (
    FileEntry,
    Manifest,
    TargetEntry,
    read_manifest,
    verify_files,
    write_manifest,
)
from edgekit.types import Cpu, InputSpec, OutputSpec, Preprocessing, Task


@pytest.fixture
def result_dir(tmp_path: Path) -> Path:
    for name in ("float/model.onnx", "onnxruntime/model.onnx", "tensorrt/engine.plan"):
        path = tmp_path / name
        path.parent.mkdir()
        path.write_bytes(name.encode())
    return tmp_path


@pytest.fixture
def manifest(result_dir: Path) -> Manifest:
    engine = FileEntry.of(result_dir, "tensorrt/engine.plan")
    return Manifest(
        edgekit_version="1.2.3",
        task=Task.CLASSIFICATION,
        inputs=(InputSpec("image", (1, 3, 224, 224), "float32", (2, 3)),),
        outputs=(OutputSpec("logits", (1, 1000)),),
        preprocessing=Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.5,), resize=256, crop=224),
        num_classes=1000,
        scheme="w8a8",
        cpu=Cpu.AVX2,
        targets=(
            TargetEntry(
                "onnxruntime",
                "onnxruntime/model.onnx",
                (FileEntry.of(result_dir, "onnxruntime/model.onnx"),),
                executed=True,
            ),
            TargetEntry("tensorrt", engine.path, (engine,), False, "no GPU here", (engine.path,)),
        ),
        files=(FileEntry.of(result_dir, "float/model.onnx"),),
        versions={"onnxruntime": "1.32.0", "numpy": "2.4.6"},
    )


def test_what_is_written_is_read(result_dir: Path, manifest: Manifest) -> None:
    write_manifest(manifest, result_dir)
    assert read_manifest(result_dir) == manifest


def test_equal_manifests_give_equal_bytes(result_dir: Path, manifest: Manifest) -> None:
    first = write_manifest(manifest, result_dir).read_bytes()
    shuffled = replace(manifest, versions=dict(reversed(manifest.versions.items())))
    assert write_manifest(shuffled, result_dir).read_bytes() == first


def test_the_file_is_plain_json_with_its_schema_first(result_dir: Path, manifest: Manifest) -> None:
    data = json.loads(write_manifest(manifest, result_dir).read_text(encoding="utf-8"))
    assert next(iter(data.items())) == ("schema_version", 1)
    assert data["task"] == "classification"
    assert data["files"] == [
        {
            "path": "float/model.onnx",
            "sha256": hashlib.sha256(b"float/model.onnx").hexdigest(),
            "size_bytes": 16,
        }
    ]


def test_optional_parts_may_be_absent(result_dir: Path, manifest: Manifest) -> None:
    plain = replace(manifest, preprocessing=None, num_classes=None, task=Task.OTHER, versions={})
    write_manifest(plain, result_dir)
    assert read_manifest(result_dir) == plain


@pytest.mark.parametrize("where", ["absent", "float/model.onnx", "."])
def test_other_directories_are_refused(result_dir: Path, where: str) -> None:
    with pytest.raises(LoadError, match="not an edgekit result directory"):
        read_manifest(result_dir / where)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema version 2, this edgekit reads 1"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"scheme": None}, None),
        ({"task": "cooking"}, "cooking"),
        ({"inputs": 5}, "not a valid manifest"),
        ({"inputs": [{"name": "x"}]}, "shape"),
        ({"versions": []}, "not a valid manifest"),
        ({"reference": "../elsewhere.onnx"}, "not a path inside"),
    ],
    ids=str,
)
def test_damaged_contents_are_refused(
    result_dir: Path, manifest: Manifest, change: dict[str, Any], message: str | None
) -> None:
    data = {**manifest.to_dict(), **change}
    if message is None:
        del data["scheme"]
        message = "missing key 'scheme'"
    (result_dir / "manifest.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(LoadError, match=message):
        read_manifest(result_dir)


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"], ids=["empty", "cut", "list", "binary"])
def test_what_is_no_json_object_is_refused(result_dir: Path, text: str) -> None:
    (result_dir / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(LoadError, match=r"manifest\.json"):
        read_manifest(result_dir)


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "", "C:/x", "a\\b"])
def test_paths_stay_inside_the_directory(path: str) -> None:
    with pytest.raises(ConfigError, match="not a path inside"):
        FileEntry(path, "0", 0)


def test_intact_files_pass(result_dir: Path, manifest: Manifest) -> None:
    assert len(manifest.all_files) == 3
    verify_files(result_dir, manifest.all_files)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"tensorrt/engine.plaN", "SHA-256"),
        (b"tensorrt", "has 8 bytes, the manifest says 20"),
        (None, "cannot be read"),
    ],
    ids=["changed", "cut", "missing"],
)
def test_a_changed_file_is_named(
    result_dir: Path, manifest: Manifest, content: bytes | None, message: str
) -> None:
    path = result_dir / "tensorrt" / "engine.plan"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(LoadError, match=rf"engine\.plan' .*{message}"):
        verify_files(result_dir, manifest.all_files)
    verify_files(result_dir, manifest.target("onnxruntime").files)


def test_an_unknown_target_lists_the_known_ones(manifest: Manifest) -> None:
    with pytest.raises(ConfigError, match="no target 'openvino'") as caught:
        manifest.target("openvino")
    assert caught.value.hint == "it holds: onnxruntime, tensorrt"


def test_entries_must_be_consistent(manifest: Manifest) -> None:
    entry = manifest.targets[0]
    with pytest.raises(ConfigError, match="listed twice"):
        replace(manifest, targets=(entry, entry))
    with pytest.raises(ConfigError, match="not among its files"):
        replace(entry, model="onnxruntime/other.onnx")
