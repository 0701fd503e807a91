"""Tiny artifacts to compare, and results around them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.manifest import FileEntry, Manifest, TargetEntry, write_manifest
from edgekit.types import Cpu, InputSpec, OutputSpec, Task

_SIZE, _CHANNELS = 8, 16


def _write(path: Path, *, quantized: bool, noise: float = 0.0, size: int = _SIZE) -> None:
    """``x [N, 3, S, S] -> Conv -> y``, its weights and input in INT8 or both in float."""
    onnx = pytest.importorskip("onnx", reason="the test networks are built with onnx")
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    rng = np.random.default_rng(0)
    codes = rng.integers(-63, 64, (_CHANNELS, 3, 3, 3)).astype(np.int8)
    weight = codes.astype(np.float32) * 2**-6 + noise * rng.standard_normal(codes.shape)
    tensors: dict[str, np.ndarray] = {"scale": np.float32(2**-6), "zero": np.uint8(128)}
    nodes: list[Any] = [node("Conv", ["x", "weight"], ["y"], "layer", pads=[1] * 4)]
    if quantized:
        codes = np.clip(np.rint(weight / 2**-6), -127, 127).astype(np.int8)
        tensors["weight.codes"] = codes
        nodes = [
            node("QuantizeLinear", ["x", "scale", "zero"], ["x.q"], "x.Q"),
            node("DequantizeLinear", ["x.q", "scale", "zero"], ["x.in"], "x.DQ"),
            node("DequantizeLinear", ["weight.codes", "scale"], ["weight"], "weight.DQ"),
            node("Conv", ["x.in", "weight"], ["c"], "layer", pads=[1] * 4),
            node("QuantizeLinear", ["c", "wide", "zero"], ["c.q"], "c.Q"),
            node("DequantizeLinear", ["c.q", "wide", "zero"], ["y"], "c.DQ"),
        ]
        tensors["wide"] = np.float32(2**-3)
    else:
        tensors = {"weight": weight.astype(np.float32)}
    graph = onnx.helper.make_graph(
        nodes,
        "network",
        [value("x", onnx.TensorProto.FLOAT, ["batch", 3, size, size])],
        [value("y", onnx.TensorProto.FLOAT, ["batch", _CHANNELS, size, size])],
        [onnx.numpy_helper.from_array(np.asarray(data), name) for name, data in tensors.items()],
    )
    opset = [onnx.helper.make_opsetid("", 19)]
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)


@pytest.fixture(scope="session")
def write_network() -> Callable[..., None]:
    """Write ``path``: ``quantized`` or float, weights with ``noise``, images of ``size``."""
    return _write


@pytest.fixture(scope="session")
def write_result(write_network: Callable[..., None]) -> Callable[..., Path]:
    """Write a result directory with the given targets; ``noise`` spoils its codes."""

    def write(
        folder: Path, targets: tuple[str, ...] = ("onnxruntime",), noise: float = 0.0
    ) -> Path:
        write_network(folder / "float/model.onnx", quantized=False)
        entries = []
        for name in targets:
            write_network(folder / name / "model.onnx", quantized=True, noise=noise)
            entry = FileEntry.of(folder, f"{name}/model.onnx")
            entries.append(TargetEntry(name, entry.path, (entry,), True, None, ()))
        manifest = Manifest(
            edgekit_version="0",
            task=Task.OTHER,
            inputs=(InputSpec("x", (1, 3, _SIZE, _SIZE)),),
            outputs=(OutputSpec("y", (1, _CHANNELS, _SIZE, _SIZE)),),
            preprocessing=None,
            num_classes=None,
            scheme="w8a8",
            cpu=Cpu.AVX2,
            targets=tuple(entries),
            files=(FileEntry.of(folder, "float/model.onnx"),),
        )
        write_manifest(manifest, folder)
        return folder

    return write


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``int8.onnx``, ``same.onnx``, its copy, and ``float.onnx``, its float form."""
    folder = tmp_path_factory.mktemp("networks")
    for name, quantized in (("int8", True), ("same", True), ("float", False)):
        _write(folder / f"{name}.onnx", quantized=quantized)
    return folder
