"""QDQ graphs: valid ONNX, small, with the names and forms that the runtimes fuse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.exporters._qdq import realize, realize_float
from edgekit.lowering import LoweredModel
from edgekit.quantized import QuantizedModel, lower
from edgekit.registry import TARGETS, resolve
from edgekit.simulate import simulate
from edgekit.template import build_template
from edgekit.types import Cpu, InputSpec

onnx = pytest.importorskip("onnx", reason="checks the exported graphs")
ir = pytest.importorskip("onnx_ir", reason="exported graphs are onnx_ir models")

Quantize = Callable[..., QuantizedModel]


class Network(nn.Module):
    """Explicit padding, a clamp, a residual sum, a 3-D linear layer and a wide head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1))
        self.tokens = nn.Linear(8, 128, bias=False)
        self.head = nn.Linear(128, 100)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = F.relu6(self.norm(self.stem(F.pad(image, (0, 1, 0, 1)))))
        x = F.relu(self.body(x) + x)
        y = self.tokens(x.flatten(2).transpose(1, 2))
        return {"scores": self.head(y.mean(1)), "map": x}


@dataclass(frozen=True)
class Case:
    model: QuantizedModel
    template: ir.Model

    def lowered(self, target: str) -> LoweredModel:
        exporter = resolve(TARGETS, target, "target")()
        found: LoweredModel = lower(
            self.model, exporter.profile(Cpu.AVX2), exporter.unsupported(self.model.sited)
        )
        return found

    def proto(self, target: str) -> onnx.ModelProto:
        return ir.to_proto(realize(self.template, self.lowered(target)))


@pytest.fixture(scope="module")
def case(quantize_module: Quantize) -> Case:
    torch.manual_seed(0)
    model = quantize_module(Network(), InputSpec("image", (1, 3, 16, 16)))
    return Case(model, build_template(model.sited))


@pytest.fixture(scope="module")
def protos(case: Case) -> dict[str, onnx.ModelProto]:
    return {target: case.proto(target) for target in TARGETS}


def nodes(proto: onnx.ModelProto, *ops: str) -> list[onnx.NodeProto]:
    return [node for node in proto.graph.node if node.op_type in ops]


def constants(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in proto.graph.initializer}


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def run(
    proto: onnx.ModelProto, feeds: Sequence[Tensor], *, as_arithmetic: bool = True
) -> list[np.ndarray]:
    ort = pytest.importorskip("onnxruntime", reason="the reference that executes ONNX")
    options = ort.SessionOptions()
    if as_arithmetic:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]
    return list(session.run(None, {n: x.numpy() for n, x in zip(names, feeds, strict=True)}))


def image(batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("target", TARGETS)
def test_file_is_valid_onnx_of_one_opset(protos: dict[str, onnx.ModelProto], target: str) -> None:
    proto = protos[target]
    onnx.checker.check_model(proto, full_check=True)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 20)]
    assert {node.domain for node in proto.graph.node} == {""}
    assert proto.functions == []
    names = [node.name for node in proto.graph.node]
    assert len(set(names)) == len(names)
    assert all(names)


@pytest.mark.parametrize("target", TARGETS)
def test_inputs_and_outputs_keep_names_and_batch(
    protos: dict[str, onnx.ModelProto], target: str
) -> None:
    graph = protos[target].graph
    assert [value.name for value in graph.input] == ["image"]
    assert [value.name for value in graph.output] == ["scores", "map"]
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        first, *rest = value.type.tensor_type.shape.dim
        assert first.dim_param == "batch"
        assert all(dim.dim_value > 0 for dim in rest)


@pytest.mark.parametrize("target", TARGETS)
def test_weights_take_one_byte_each(
    case: Case, protos: dict[str, onnx.ModelProto], target: str, tmp_path: Path
) -> None:
    codes = [t for t in protos[target].graph.initializer if t.data_type == onnx.TensorProto.INT8]
    weights = [tensor for tensor in codes if len(tensor.dims) > 1]
    count = sum(c.codes.numel() for c in case.model.codes.values())
    assert sum(int(np.prod(tensor.dims)) for tensor in weights) == count
    for tensor in weights:
        assert len(tensor.raw_data) == np.prod(tensor.dims)
        assert len(tensor.int32_data) == 0
    path = tmp_path / "model.onnx"
    ir.save(realize(case.template, case.lowered(target)), path)
    # 15 thousand weights; scales, zero points and biases of 244 channels take 9 to 17 bytes each,
    # node names and shapes about 10 kB
    assert count < path.stat().st_size < count + 17 * 244 + 10_000


@pytest.mark.parametrize("target", TARGETS)
def test_quantizers_state_scale_and_zero_point(
    case: Case, protos: dict[str, onnx.ModelProto], target: str
) -> None:
    proto, profile = protos[target], case.lowered(target).profile
    stored = constants(proto)
    quantizers = nodes(proto, "QuantizeLinear", "DequantizeLinear")
    assert quantizers
    for node in quantizers:
        tensor = stored.get(node.input[0])
        if tensor is not None and tensor.data_type == onnx.TensorProto.INT32:
            assert len(node.input) == 2  # a bias is fused without, and it would weigh as much
            continue
        assert len(node.input) == 3
        scale = onnx.numpy_helper.to_array(stored[node.input[1]])
        zero = onnx.numpy_helper.to_array(stored[node.input[2]])
        assert scale.dtype == np.float32
        assert (scale > 0).all()
        assert zero.shape == scale.shape
        if zero.dtype == np.int8 and profile.signed.symmetric:
            assert not zero.any()
    if target == "tensorrt":  # no unsigned codes and no zero point (targets.md, 1.1)
        assert {stored[n.input[2]].data_type for n in quantizers} == {onnx.TensorProto.INT8}


@pytest.mark.parametrize("target", TARGETS)
def test_one_quantizer_for_each_tensor(
    protos: dict[str, onnx.ModelProto], case: Case, target: str
) -> None:
    quantized = nodes(protos[target], "QuantizeLinear")
    assert len({node.input[0] for node in quantized}) == len(quantized)
    assert len(quantized) == len(set(case.lowered(target).placement.tensors))


@pytest.mark.parametrize("target", TARGETS)
def test_padding_is_fused_and_weights_are_transposed(
    protos: dict[str, onnx.ModelProto], target: str
) -> None:
    proto = protos[target]
    assert nodes(proto, "Pad") == []
    (stem,) = (node for node in nodes(proto, "Conv") if node.name == "stem")
    assert attributes(stem)["pads"] == [0, 0, 1, 1]
    (matmul,) = nodes(proto, "MatMul")
    by_output = {node.output[0]: node for node in proto.graph.node}
    dequantize = by_output[matmul.input[1]]
    assert dequantize.op_type == "DequantizeLinear"
    codes = constants(proto)[dequantize.input[0]]
    assert (list(codes.dims), attributes(dequantize)["axis"]) == ([8, 128], 1)
    # the only transposition left is the network's own, of values
    assert len(nodes(proto, "Transpose")) == 1


@pytest.mark.parametrize("target", TARGETS)
def test_layers_carry_their_module_paths(protos: dict[str, onnx.ModelProto], target: str) -> None:
    layers = {node.name for node in nodes(protos[target], "Conv", "MatMul", "Gemm")}
    assert layers == {"stem", "body.0", "tokens", "head"}


def test_clamps_are_removed_where_absorbed(protos: dict[str, onnx.ModelProto]) -> None:
    left = {target: len(nodes(proto, "Relu", "Clip")) for target, proto in protos.items()}
    # OpenVINO keeps both: each is read by a sum or an output in float
    assert left == {"onnxruntime": 0, "openvino": 2, "tensorrt": 2, "simulation": 2}


def test_biases_are_int32_for_onnxruntime_only(protos: dict[str, onnx.ModelProto]) -> None:
    for target, proto in protos.items():
        types = {tensor.data_type for tensor in proto.graph.initializer}
        assert (onnx.TensorProto.INT32 in types) == (target == "onnxruntime")
    proto = protos["onnxruntime"]
    by_output = {node.output[0]: node for node in proto.graph.node}
    for layer in nodes(proto, "Conv", "Gemm"):
        dequantize = by_output[layer.input[2]]
        bias, scale = (constants(proto)[name] for name in dequantize.input)
        assert bias.data_type == onnx.TensorProto.INT32
        # the accumulator's step is the product of the two others
        activation, weight = (by_output[name] for name in layer.input[:2])
        product = onnx.numpy_helper.to_array(
            constants(proto)[activation.input[1]]
        ) * onnx.numpy_helper.to_array(constants(proto)[weight.input[1]])
        assert onnx.numpy_helper.to_array(scale) == pytest.approx(product, rel=1e-6)


@pytest.mark.parametrize("target", TARGETS)
def test_graph_computes_what_was_simulated(
    case: Case, protos: dict[str, onnx.ModelProto], target: str
) -> None:
    expected = simulate(case.lowered(target), image())
    for got, wanted in zip(run(protos[target], [image()]), expected, strict=True):
        reference = wanted.numpy()
        # the same arithmetic in float32; where a sum meets the edge of two codes, one code differs
        close = np.abs(got - reference) <= 1e-4 * np.abs(reference).max()
        assert close.mean() > 0.98
        assert np.linalg.norm(got - reference) <= 0.01 * np.linalg.norm(reference)


def test_float_graph_is_the_network(case: Case) -> None:
    proto = ir.to_proto(realize_float(case.template, case.model.sited))
    onnx.checker.check_model(proto, full_check=True)
    assert nodes(proto, "QuantizeLinear", "DequantizeLinear", "Pad") == []
    assert {node.domain for node in proto.graph.node} == {""}
    for got, wanted in zip(run(proto, [image()]), case.model.sited.model(image()), strict=True):
        assert got == pytest.approx(wanted.numpy(), abs=1e-5)  # float32 in another order


def test_realizing_leaves_the_template_alone(case: Case) -> None:
    before = ir.to_proto(case.template).SerializeToString()
    for target in TARGETS:
        case.proto(target)
    realize_float(case.template, case.model.sited)
    assert ir.to_proto(case.template).SerializeToString() == before


@pytest.mark.parametrize("target", TARGETS)
def test_same_decisions_give_the_same_bytes(
    case: Case, protos: dict[str, onnx.ModelProto], target: str
) -> None:
    assert case.proto(target).SerializeToString() == protos[target].SerializeToString()


class SharedLayers(nn.Module):
    """Layers that are called twice, with and without their own BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.conv_1 = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.linear, self.norm = nn.Linear(3, 3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(F.relu(self.norm(self.conv(x)))))
        x = self.conv_1(x).mean((2, 3))
        return self.linear(F.relu(self.linear(x)))


class RepeatedOutputs(nn.Module):
    """Returns one tensor twice, an input, and an inner tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.conv(x)
        z = self.head(y)
        return z, z, x, y


class TiedWeights(nn.Module):
    """One parameter as an embedding table and as a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(9, 6), nn.Linear(6, 6)

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.linear(self.table(ids).mean(1)), self.table.weight)


ODD: dict[type[nn.Module], InputSpec] = {
    SharedLayers: InputSpec("x", (1, 3, 8, 8)),
    RepeatedOutputs: InputSpec("x", (1, 3, 8, 8)),
    TiedWeights: InputSpec("ids", (1, 4), "int64"),
}


@pytest.mark.parametrize("network", ODD)
def test_shared_and_repeated_tensors(quantize_module: Quantize, network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    spec = ODD[network]
    model = quantize_module(network(), spec)
    odd = Case(model, build_template(model.sited))
    generator = torch.Generator().manual_seed(1)
    x = (
        torch.randn(2, *spec.shape[1:], generator=generator)
        if spec.dtype == "float32"
        else torch.randint(9, (2, *spec.shape[1:]), generator=generator)
    )
    for target in TARGETS:
        proto = odd.proto(target)
        onnx.checker.check_model(proto, full_check=True)
        names = [node.name for node in proto.graph.node if node.name]
        assert len(set(names)) == len(names)
        assert [v.name for v in proto.graph.output] == [o.name for o in model.sited.model.outputs]
        assert [v.name for v in proto.graph.input] == [spec.name]
        expected = simulate(odd.lowered(target), x)
        for got, wanted in zip(run(proto, [x]), expected, strict=True):
            error = np.linalg.norm(got - wanted.numpy())
            assert error <= 0.01 * np.linalg.norm(wanted.numpy())  # a code here and there
