"""Which artifact runs, and what it takes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.errors import LoadError, UnsupportedError
from edgekit.manifest import Manifest, read_manifest, write_manifest
from edgekit.run.artifact import OpenArtifact, open_target


@pytest.fixture
def copied(restorer: Path, tmp_path: Path) -> Path:
    """A result that a test may change."""
    return shutil.copytree(restorer, tmp_path / "result")


def opened(folder: Path, manifest: Manifest, name: str | None = None) -> OpenArtifact:
    artifact = open_target(folder, manifest, name, None)
    artifact.runner.__exit__(None, None, None)
    return artifact


def test_executed_targets_go_first(restorer: Path) -> None:
    manifest = read_manifest(restorer)
    assert [entry.name for entry in manifest.targets] == ["tensorrt", "onnxruntime"]
    artifact = opened(restorer, manifest)
    assert (artifact.name, artifact.executed, artifact.reason) == ("onnxruntime", True, None)


def test_what_no_runtime_executes_is_simulated(copied: Path) -> None:
    manifest = read_manifest(copied)
    entry = replace(manifest.target("onnxruntime"), name="simulation", executed=False)
    write_manifest(replace(manifest, targets=(entry,)), copied)
    artifact = opened(copied, read_manifest(copied))
    assert (artifact.name, artifact.executed) == ("simulation", False)
    assert artifact.reason is not None
    assert "its ONNX file ran in ONNX Runtime instead" in artifact.reason


def test_nothing_runs(copied: Path) -> None:
    manifest = replace(read_manifest(copied), targets=())
    with pytest.raises(UnsupportedError, match=r"no target of .* can run here") as caught:
        open_target(copied, manifest, None, None)
    assert "pip install" in caught.value.hint


def test_a_changed_file_is_refused(copied: Path) -> None:
    with (copied / "onnxruntime/model.onnx").open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(LoadError, match=r"model\.onnx"):
        open_target(copied, read_manifest(copied), None, None)


def test_engines_take_the_stated_size_only(restorer: Path) -> None:
    manifest = read_manifest(restorer)
    with open_target(restorer, manifest, "onnxruntime", None).runner as runner:
        free = OpenArtifact("onnxruntime", runner, True, None, manifest)
        assert free.fixed_sizes() == (None, 3, None, None)
        # An engine of TensorRT is built for one size, although its file may not say so.
        engine = OpenArtifact("tensorrt", runner, True, None, manifest)
        assert engine.fixed_sizes() == (1, 3, 16, 16)
        simulated = OpenArtifact("tensorrt", runner, False, "no GPU", manifest)
        assert simulated.fixed_sizes() == (None, 3, None, None)
