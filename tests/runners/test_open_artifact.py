from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import ConfigError, LoadError
from edgekit.manifest import FileEntry, Manifest, TargetEntry, write_manifest
from edgekit.runners import open_artifact, open_model
from edgekit.types import Cpu, InputSpec, OutputSpec, Task

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


@pytest.fixture
def result_dir(qdq_network: Any, tmp_path: Path) -> Path:
    """A device's copy of a result: one target, and nothing beside it."""
    (tmp_path / "onnxruntime").mkdir()
    shutil.copy(qdq_network.path, tmp_path / "onnxruntime/model.onnx")
    file = FileEntry.of(tmp_path, "onnxruntime/model.onnx")
    manifest = Manifest(
        edgekit_version="0",
        task=Task.IMAGE_TO_IMAGE,
        inputs=(InputSpec("x", (1, 3, 8, 8)),),
        outputs=(OutputSpec("y", (1, 4, 8, 8)),),
        preprocessing=None,
        num_classes=None,
        scheme="w8a8",
        cpu=Cpu.ARM,
        targets=(TargetEntry("onnxruntime", file.path, (file,), executed=True),),
        files=(FileEntry("float/model.onnx", "0" * 64, 1),),
    )
    write_manifest(manifest, tmp_path)
    return tmp_path


def test_a_target_opens_by_name(qdq_network: Any, result_dir: Path) -> None:
    x = qdq_network.inputs(2)
    with open_artifact(result_dir, "onnxruntime", threads=1) as runner:
        y = runner.infer({"x": x})["y"]
    # 72 products up to 6.4 in float32, as in test_onnxruntime.
    np.testing.assert_allclose(y, qdq_network.reference(x), rtol=0, atol=3e-5)


def test_a_damaged_file_does_not_open(result_dir: Path) -> None:
    (result_dir / "onnxruntime/model.onnx").write_bytes(b"")
    with pytest.raises(LoadError, match="has 0 bytes"):
        open_artifact(result_dir, "onnxruntime")


def test_unknown_targets_are_refused(result_dir: Path) -> None:
    with pytest.raises(ConfigError, match="no target 'openvino'"):
        open_artifact(result_dir, "openvino")
    with pytest.raises(ConfigError, match="unknown target 'coreml'"):
        open_model("coreml", result_dir / "onnxruntime/model.onnx")
    with pytest.raises(LoadError, match="not an edgekit result directory"):
        open_artifact(result_dir / "onnxruntime", "onnxruntime")
