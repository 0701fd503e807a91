"""Small results made by hand, with one quantized convolution each, that the real runtimes run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.manifest import FileEntry, Manifest, TargetEntry, read_manifest, write_manifest
from edgekit.types import Cpu, InputSpec, OutputSpec, Preprocessing, Task

try:
    import onnx
except ModuleNotFoundError:
    onnx = None

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Sizes = list[Any]


def _model(
    nodes: list[Any],
    constants: Mapping[str, Any],
    inputs: Mapping[str, Sizes],
    outputs: Mapping[str, Sizes],
) -> Any:
    def infos(tensors: Mapping[str, Sizes]) -> list[Any]:
        info, real = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
        return [info(name, real, sizes) for name, sizes in tensors.items()]

    arrays = [onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()]
    graph = onnx.helper.make_graph(nodes, "network", infos(inputs), infos(outputs), arrays)
    opset = [onnx.helper.make_opsetid("", 19)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)


def quantized_conv(channels: int, stride: int) -> tuple[list[Any], dict[str, Any]]:
    """Return nodes from ``image`` to ``hidden``, and their constants."""
    node = onnx.helper.make_node
    nodes = [
        node("QuantizeLinear", ["image", "scale", "zero"], ["q"], "Q"),
        node("DequantizeLinear", ["q", "scale", "zero"], ["dq"], "DQ"),
        node("DequantizeLinear", ["codes", "weight_scale"], ["w"], "W"),
        node("Conv", ["dq", "w"], ["conv"], "first", pads=[1] * 4, strides=[stride] * 2),
        node("Relu", ["conv"], ["hidden"], "relu"),
    ]
    codes = np.random.default_rng(0).integers(-63, 64, (channels, 3, 3, 3)).astype(np.int8)
    constants = {
        "codes": codes,
        "weight_scale": np.float32(2**-7),
        "scale": np.float32(2**-5),
        "zero": np.int8(0),
    }
    return nodes, constants


@pytest.fixture(scope="session")
def write_result() -> Callable[..., Path]:
    """Write a result of one model for ONNX Runtime, and for TensorRT, which nothing runs here."""

    for module in ("onnx", "onnxruntime", "cv2"):
        pytest.importorskip(module, reason=f"{module} is not installed")

    def write(
        folder: Path,
        build: Callable[[], Any],
        task: Task,
        inputs: tuple[InputSpec, ...],
        outputs: tuple[OutputSpec, ...],
        preprocessing: Preprocessing | None,
    ) -> Path:
        model, entries = build(), []
        for name in ("float", "tensorrt", "onnxruntime"):
            (folder / name).mkdir(parents=True)
            onnx.save(model, folder / name / "model.onnx")
            file = FileEntry.of(folder, f"{name}/model.onnx")
            entries.append(TargetEntry(name, file.path, (file,), name == "onnxruntime"))
        manifest = Manifest(
            edgekit_version="0",
            task=task,
            inputs=inputs,
            outputs=outputs,
            preprocessing=preprocessing,
            num_classes=None,
            scheme="w8a8",
            cpu=Cpu.AVX2,
            targets=tuple(entries[1:]),
            files=entries[0].files,
        )
        write_manifest(manifest, folder)
        return folder

    return write


def restoring_model(height: str | int = "h", width: str | int = "w") -> Any:
    """A U of one step: sizes are multiples of two, and it sees five pixels far at most."""
    nodes, constants = quantized_conv(8, 2)
    node = onnx.helper.make_node
    up = np.random.default_rng(1).normal(0, 0.1, (8, 3, 4, 4)).astype(np.float32)
    constants |= {"up": up, "half": np.float32(0.5)}
    nodes += [
        node("ConvTranspose", ["hidden", "up"], ["detail"], "last", pads=[1] * 4, strides=[2, 2]),
        node("Mul", ["image", "half"], ["dimmed"]),
        node("Add", ["detail", "dimmed"], ["restored"]),
    ]
    sizes = ["batch", 3, height, width]
    return _model(nodes, constants, {"image": sizes}, {"restored": sizes})


@pytest.fixture(scope="session")
def restorer(tmp_path_factory: pytest.TempPathFactory, write_result: Callable[..., Path]) -> Path:
    return write_result(
        tmp_path_factory.mktemp("restorer") / "result",
        lambda: restoring_model(),
        Task.IMAGE_TO_IMAGE,
        (InputSpec("image", (1, 3, 16, 16), variable_axes=(2, 3), multiple=2),),
        (OutputSpec("restored", (1, 3, -1, -1)),),
        Preprocessing(),
    )


@pytest.fixture(scope="session")
def openvino_restorer(restorer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network for OpenVINO."""
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    folder = tmp_path_factory.mktemp("openvino") / "result"
    shutil.copytree(restorer, folder)
    (folder / "openvino").mkdir()
    network = openvino.Core().read_model(folder / "onnxruntime/model.onnx")
    openvino.save_model(network, folder / "openvino/model.xml", compress_to_fp16=False)
    files = tuple(FileEntry.of(folder, f"openvino/model.{kind}") for kind in ("xml", "bin"))
    entry = TargetEntry("openvino", files[0].path, files, executed=True)
    write_manifest(replace(read_manifest(folder), targets=(entry,)), folder)
    return folder


@pytest.fixture(scope="session")
def fixed_restorer(
    tmp_path_factory: pytest.TempPathFactory, write_result: Callable[..., Path]
) -> Path:
    return write_result(
        tmp_path_factory.mktemp("fixed") / "result",
        lambda: restoring_model(32, 40),
        Task.IMAGE_TO_IMAGE,
        (InputSpec("image", (1, 3, 32, 40)),),
        (OutputSpec("restored", (1, 3, 32, 40)),),
        Preprocessing(),
    )


def pooling_model(output: str, size: int) -> Any:
    nodes, constants = quantized_conv(16, 1)
    node = onnx.helper.make_node
    constants["matrix"] = np.random.default_rng(2).normal(0, 1, (16, size)).astype(np.float32)
    nodes += [
        node("GlobalAveragePool", ["hidden"], ["pooled"]),
        node("Flatten", ["pooled"], ["flat"]),
        node("MatMul", ["flat", "matrix"], [output]),
    ]
    inputs = {"image": ["batch", 3, 16, 16]}
    return _model(nodes, constants, inputs, {output: ["batch", size]})


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory, write_result: Callable[..., Path]) -> Path:
    return write_result(
        tmp_path_factory.mktemp("classifier") / "result",
        lambda: pooling_model("logits", 7),
        Task.CLASSIFICATION,
        (InputSpec("image", (1, 3, 16, 16)),),
        (OutputSpec("logits", (1, 7)),),
        Preprocessing(MEAN, STD, resize=16, crop=16),
    )


@pytest.fixture(scope="session")
def embedder(tmp_path_factory: pytest.TempPathFactory, write_result: Callable[..., Path]) -> Path:
    return write_result(
        tmp_path_factory.mktemp("embedder") / "result",
        lambda: pooling_model("embedding", 12),
        Task.EMBEDDING,
        (InputSpec("image", (1, 3, 16, 16)),),
        (OutputSpec("embedding", (1, 12)),),
        Preprocessing(MEAN, STD, resize=16, crop=16),
    )


@pytest.fixture(scope="session")
def ranker(tmp_path_factory: pytest.TempPathFactory, write_result: Callable[..., Path]) -> Path:
    """Two inputs, and an output whose name ``numpy.savez`` takes for an argument of its own."""

    def build() -> Any:
        node, rows = onnx.helper.make_node, ["batch", 4]
        nodes = [node("Mul", ["users", "items"], ["product"]), node("Neg", ["product"], ["file"])]
        return _model(nodes, {}, {"users": rows, "items": rows}, {"file": rows})

    return write_result(
        tmp_path_factory.mktemp("ranker") / "result",
        build,
        Task.RANKING,
        (InputSpec("users", (1, 4)), InputSpec("items", (1, 4))),
        (OutputSpec("file", (1, 4)),),
        None,
    )


@pytest.fixture(scope="session")
def artifact_output() -> Callable[[Path, np.ndarray], np.ndarray]:
    """Run a result's model by ONNX Runtime alone, without anything of edgekit."""
    import onnxruntime

    def run(result: Path, value: np.ndarray) -> np.ndarray:
        session = onnxruntime.InferenceSession(
            result / "onnxruntime/model.onnx", providers=["CPUExecutionProvider"]
        )
        found: np.ndarray = session.run(None, {"image": value})[0]
        return found

    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
