"""Weights below 8 bits: half a byte on disk, the kernels of INT8 in execution, equal results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.errors import ExportError
from edgekit.exporters import _tensorrt_builder
from edgekit.exporters._i4_constants import pack_constants
from edgekit.lowering import LoweredModel
from edgekit.quantized import QuantizedModel, lower
from edgekit.registry import TARGETS, resolve
from edgekit.runners import open_model
from edgekit.simulate import simulate
from edgekit.target import Target
from edgekit.template import build_template
from edgekit.types import Artifact, Cpu, ExecutedLayer, LayerBits

onnx = pytest.importorskip("onnx", reason="reads the exported graphs")
ir = pytest.importorskip("onnx_ir", reason="exported graphs are onnx_ir models")

Quantize = Callable[..., QuantizedModel]
RUN_HERE = ("onnxruntime", "openvino")
INT4, INT8 = onnx.TensorProto.INT4, onnx.TensorProto.INT8


class Network(nn.Module):
    """Every kind of layer with weights; the first one has an odd number of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 5, 3, groups=5)
        self.dense, self.grouped = nn.Conv2d(5, 16, 1), nn.Conv2d(16, 16, 3, groups=4)
        self.up = nn.ConvTranspose2d(16, 12, 2, 2)
        self.tokens, self.head = nn.Linear(12, 24), nn.Linear(24, 7)
        self.wider = nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.dense(F.relu(self.depthwise(F.relu(self.stem(x))))))
        x = F.relu(self.up(F.relu(self.wider(F.relu(self.grouped(x))))))
        x = F.relu(self.tokens(x.flatten(2).transpose(1, 2)))
        return self.head(x.mean(1))


NARROW = ("stem", "depthwise", "dense", "grouped", "up", "tokens", "head")
BITS = {**dict.fromkeys(NARROW, LayerBits(4, 8)), "wider": LayerBits(6, 8)}


@dataclass(frozen=True)
class Exported:
    folder: Path
    artifact: Artifact
    lowered: LoweredModel

    @property
    def model(self) -> Path:
        return self.folder / self.artifact.model


def target_of(name: str) -> Target:
    target: Target = resolve(TARGETS, name, "target")()
    missing = target.missing()
    if missing is not None:
        pytest.skip(missing.message)
    return target


@pytest.fixture(scope="module")
def model(quantize_module: Quantize) -> QuantizedModel:
    torch.manual_seed(0)
    return quantize_module(Network(), (3, 12, 12), scheme="w4a8", bits=BITS)


@pytest.fixture(scope="module")
def export(
    model: QuantizedModel, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Exported]:
    template = build_template(model.sited)
    made: dict[str, Exported] = {}

    def get(name: str) -> Exported:
        if name not in made:
            target, folder = target_of(name), tmp_path_factory.mktemp(name)
            lowered = lower(model, target.profile(Cpu.AVX2), target.unsupported(model.sited))
            pending = target.export(template, lowered, folder)
            try:
                made[name] = Exported(folder, pending.wait(), lowered)
            finally:
                pending.close()
        return made[name]

    return get


def images() -> Tensor:
    return torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(3))


def initializers(path: Path) -> Mapping[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("name", TARGETS)
def test_artifact_computes_its_simulation(export: Callable[[str], Exported], name: str) -> None:
    done = export(name)
    feeds = {done.lowered.sited.model.inputs[0].name: images().numpy()}
    with open_model(name, done.model, threads=1, simulate=name not in RUN_HERE) as runner:
        (got,) = runner.infer(feeds).values()
    expected = simulate(done.lowered, images())[0].numpy()
    # as in the exporters' contract: a code here and there, a few more of them with FP16 between
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    assert error < (0.03 if done.lowered.profile.float16 else 0.01)


@pytest.mark.parametrize("name", RUN_HERE)
def test_narrow_layers_run_on_int8_kernels(export: Callable[[str], Exported], name: str) -> None:
    done = export(name)
    with open_model(name, done.model, threads=1) as runner:
        layers: dict[str, ExecutedLayer] = {e.name: e for e in runner.executed_layers()}
    layers["head"] = layers.get("head") or layers["output"]  # OpenVINO names it after the output
    floating = {layer for layer in BITS if layers[layer].precision != "int8"}
    # ONNX Runtime has no integer kernel for transposed convolutions, whatever their weights
    assert floating == ({"up"} if name == "onnxruntime" else set())


def test_onnxruntime_file_holds_nibbles(export: Callable[[str], Exported]) -> None:
    done = export("onnxruntime")
    proto = onnx.load(done.model)
    onnx.checker.check_model(proto, full_check=True)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 21)]
    stored = initializers(done.model)
    for layer, bits in BITS.items():
        codes = stored[f"{layer}.weight.codes"]
        count = int(np.prod(codes.dims))
        assert codes.data_type == (INT4 if bits.weight == 4 else INT8)
        assert len(codes.raw_data) == (-(-count // 2) if bits.weight == 4 else count)
    casts = [node for node in proto.graph.node if node.op_type == "Cast"]
    assert {node.input[0] for node in casts} == {f"{layer}.weight.codes" for layer in NARROW}
    zeros = [t.name for t in stored.values() if t.name.endswith(".zero_point") and t.dims]
    sizes = {tuple(stored[name].dims) for name in zeros}
    assert len(zeros) == len(sizes), "layers with as many channels share their zero points"


def test_openvino_keeps_the_codes_of_each_layer(
    export: Callable[[str], Exported], model: QuantizedModel
) -> None:
    openvino = pytest.importorskip("openvino")
    done = export("openvino")
    read = openvino.Core().read_model(done.model)
    constants = [op for op in read.get_ops() if op.get_type_name() == "Constant"]
    packed = [op for op in constants if op.get_element_type() == openvino.Type.i4]
    found = {op.get_friendly_name().split(".weight.")[0]: op for op in packed}
    assert set(found) == set(NARROW)
    for layer, op in found.items():
        codes = model.codes[layer].codes.numpy().reshape(-1)
        packed_codes = op.data.reshape(-1).astype(np.uint8)
        low, high = packed_codes & 15, packed_codes >> 4
        stored = np.stack([low, high], 1).reshape(-1)[: codes.size].astype(np.int16)
        # sorted, because matrices are stored in the order that MatMul reads
        assert np.array_equal(np.sort(stored - 16 * (stored > 7)), np.sort(codes)), layer
    weights = sum(model.codes[layer].codes.numel() for layer in NARROW)
    rest = model.codes["wider"].codes.numel()
    size = done.model.with_suffix(".bin").stat().st_size
    # half a byte each; scales, biases and shapes of 105 channels take less than 10 bytes each
    assert weights / 2 + rest < size < weights / 2 + rest + 10 * 105 + 200


@pytest.mark.parametrize("name", RUN_HERE)
def test_same_codes_give_the_same_bytes(
    export: Callable[[str], Exported], model: QuantizedModel, name: str, tmp_path: Path
) -> None:
    done = export(name)
    template = build_template(model.sited)
    again = target_of(name).export(template, done.lowered, tmp_path).wait()
    for path in again.files:
        assert (tmp_path / path).read_bytes() == (done.folder / path).read_bytes(), path


def test_tensorrt_holds_the_codes_in_int8_and_engines_build(
    export: Callable[[str], Exported], model: QuantizedModel
) -> None:
    done = export("tensorrt")
    stored = initializers(done.model)
    assert INT4 not in {tensor.data_type for tensor in stored.values()}
    codes = onnx.numpy_helper.to_array(stored["dense.weight.codes"])
    assert np.array_equal(codes, model.codes["dense"].codes.numpy())
    assert (codes.min(), codes.max()) >= (-8, -8)
    assert codes.max() <= 7
    if _tensorrt_builder.find_builder() is None:
        pytest.skip("no TensorRT builder is installed")
    assert any(path.endswith(".plan") for path in done.artifact.files)


def test_notes_say_what_narrow_weights_buy(
    export: Callable[[str], Exported], quantize_module: Quantize, tmp_path: Path
) -> None:
    for name in RUN_HERE:
        (note,) = export(name).artifact.notes
        assert note == (
            "8 of 8 layers have weights below 8 bits: same INT8 kernels and latency as W8A8; "
            "the gain is size"
        )
    notes = export("tensorrt").artifact.notes
    assert "same INT8 kernels, latency and size as W8A8" in notes[0]
    wide = quantize_module(nn.Conv2d(3, 4, 3), (3, 8, 8))
    target = target_of("onnxruntime")
    lowered = lower(wide, target.profile(Cpu.AVX2), {})
    assert target.export(build_template(wide.sited), lowered, tmp_path).wait().notes == ()


def test_constant_that_the_converter_changed_is_an_error() -> None:
    openvino = pytest.importorskip("openvino")
    operators = pytest.importorskip("openvino.opset13")
    x = operators.parameter([1], np.float32)
    with pytest.raises(ExportError, match=r"left no constant 'conv\.widen'"):
        pack_constants(openvino.Model([operators.relu(x)], [x]), ["conv.widen"])
