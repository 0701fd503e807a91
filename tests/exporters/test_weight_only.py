"""Weight-only layers in the real runtimes: what they compute, how small they are, what they run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.allocation import allocate
from edgekit.exporters._tensorrt_builder import find_builder, start_build
from edgekit.lowering import LoweredModel
from edgekit.quantized import QuantizedModel, lower, quantize_model
from edgekit.registry import TARGETS, resolve
from edgekit.runners import open_model
from edgekit.simulate import simulate
from edgekit.target import Target
from edgekit.template import build_template
from edgekit.types import SCHEMES, Artifact, Cpu, ExecutedLayer, InputSpec, LayerBits
from edgekit.verify import VerificationInputs, verification_inputs, verify

onnx = pytest.importorskip("onnx", reason="reads the files that were written")
ir = pytest.importorskip("onnx_ir", reason="exporters write ONNX through onnx_ir")

Quantize = Callable[..., QuantizedModel]
RUNTIMES = ("onnxruntime", "openvino", "tensorrt")
WEIGHT_ONLY = ("w4a16", "w8a16")


class Perceptron(nn.Sequential):
    """Linear layers on rows: several blocks, one that nothing divides, one output at the end."""

    def __init__(self) -> None:
        sizes = [64, 512, 100, 192, 1]
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        super().__init__(*(part for layer in layers for part in (layer, nn.ReLU())), nn.Sigmoid())


class Attention(nn.Module):
    """A transformer block over an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first, self.second = nn.Embedding(512, 128), *(nn.LayerNorm(128),) * 2
        self.qkv, self.out = nn.Linear(128, 384), nn.Linear(128, 128, bias=False)
        self.up, self.down, self.head = nn.Linear(128, 256), nn.Linear(256, 128), nn.Linear(128, 8)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        heads = self.qkv(self.first(x)).unflatten(-1, (3, 4, 32)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2])
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return self.head((x + self.down(F.gelu(self.up(self.second(x))))).mean(1))


class Words(nn.Module):
    """Two tables, one of an odd width, one that is the last layer's weight as well."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.kinds = nn.Embedding(100, 96), nn.Embedding(10, 33)
        self.join = nn.Linear(129, 96)

    def forward(self, ids: Tensor, sorts: Tensor) -> Tensor:
        x = torch.cat([self.tokens(ids), self.kinds(sorts)], -1)
        return F.linear(F.gelu(self.join(x)), self.tokens.weight)


class Picture(nn.Module):
    """Convolutions of every kind before a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=16)
        self.up, self.hidden = nn.ConvTranspose2d(16, 32, 2, 2), nn.Linear(32, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.up(F.relu(self.depthwise(F.relu(self.stem(x))))))
        return self.head(F.relu(self.hidden(x.mean((2, 3)))))


NETWORKS: Mapping[type[nn.Module], tuple[InputSpec, ...]] = {
    Perceptron: (InputSpec("x", (1, 64)),),
    Attention: (InputSpec("ids", (1, 12), "int64"),),
    Words: (InputSpec("ids", (1, 5), "int64"), InputSpec("sorts", (1, 5), "int64")),
    Picture: (InputSpec("x", (1, 3, 16, 16)),),
}


@dataclass
class Written:
    """A network with its template, and what was exported of it so far."""

    base: QuantizedModel
    template: ir.Model
    inputs: VerificationInputs
    models: dict[str, QuantizedModel] = field(default_factory=dict)

    def model(self, scheme: str) -> QuantizedModel:
        if scheme not in self.models:
            graph = self.base.sited.model.graph.graph
            self.models[scheme] = quantize_model(
                self.base.sited,
                self.base.statistics,
                SCHEMES[scheme],
                allocate(graph, SCHEMES[scheme]),
                {},
            )
        return self.models[scheme]

    def export(
        self, model: QuantizedModel, target: Target, folder: Path
    ) -> tuple[LoweredModel, Artifact]:
        decisions = lower(model, target.profile(Cpu.AVX2), target.unsupported(model.sited))
        return decisions, target.export(self.template, decisions, folder).wait()


@pytest.fixture(scope="module")
def prepare(quantize_module: Quantize) -> Callable[[type[nn.Module]], Written]:
    made: dict[type[nn.Module], Written] = {}

    def get(network: type[nn.Module]) -> Written:
        if network not in made:
            torch.manual_seed(0)
            base = quantize_module(network(), *NETWORKS[network], scheme="w4a16", samples=16)
            inputs = verification_inputs(base.sited.model, 0)
            made[network] = Written(base, build_template(base.sited), inputs, {"w4a16": base})
        return made[network]

    return get


@pytest.fixture(autouse=True)
def no_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave engines to the one test that builds one: each takes seconds."""
    monkeypatch.setattr("edgekit.exporters.tensorrt.find_builder", lambda: None)


def usable(name: str) -> Target:
    target: Target = resolve(TARGETS, name, "target")()
    missing = target.missing()
    if missing is not None:
        pytest.skip(missing.message)
    return target


def feeds(written: Written) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(array[:, 0]) for array in written.inputs.feeds.values())


def run(
    target: Target, path: Path, written: Written
) -> tuple[list[np.ndarray], list[ExecutedLayer]]:
    model = written.base.sited.model
    arrays = {name: array[:, 0] for name, array in written.inputs.feeds.items()}
    with open_model(target.name, path, threads=1, simulate=not target.executed) as runner:
        found = runner.infer(arrays)
        layers = runner.executed_layers() if target.executed else []
    return [found[spec.name] for spec in model.outputs], layers


@pytest.mark.parametrize("scheme", WEIGHT_ONLY)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", RUNTIMES)
def test_artifact_computes_its_simulation(
    name: str,
    network: type[nn.Module],
    scheme: str,
    prepare: Callable[[type[nn.Module]], Written],
    tmp_path: Path,
) -> None:
    target, written = usable(name), prepare(network)
    decisions, artifact = written.export(written.model(scheme), target, tmp_path)
    got, _ = run(target, tmp_path / artifact.model, written)
    expected = simulate(decisions, *feeds(written))
    # Both multiply the same weights; float32 sums differ by their order, 1e-6 of a norm. TensorRT
    # computes in FP16: 2^-11 for each of a dozen operators.
    limit = 5e-3 if decisions.profile.float16 else 1e-5
    for value, wanted in zip(got, expected, strict=True):
        error = np.linalg.norm(value - wanted.numpy()) / np.linalg.norm(wanted.numpy())
        assert error < limit


def float_bytes(written: Written) -> int:
    return sum(p.numel() * 4 for p in written.base.sited.model.graph.parameters())


@pytest.mark.parametrize(("scheme", "most"), [("w4a16", 0.16), ("w8a16", 0.28)])
@pytest.mark.parametrize("name", RUNTIMES)
def test_files_are_small(
    name: str,
    scheme: str,
    most: float,
    prepare: Callable[[type[nn.Module]], Written],
    tmp_path: Path,
) -> None:
    """4 bits are an eighth of 32; scales, FP32 biases and the 8-bit head come on top."""
    target, written = usable(name), prepare(Attention)
    _, artifact = written.export(written.model(scheme), target, tmp_path)
    payload = [path for path in artifact.files if not path.endswith(".xml")]
    size = sum((tmp_path / path).stat().st_size for path in payload)
    graph = 20_000  # nodes and names of an ONNX file
    table = written.base.sited.model.graph.table.weight.numel() * 4 if name == "tensorrt" else 0
    assert size < most * (float_bytes(written) - table) + table / 2 + graph


@pytest.mark.parametrize("scheme", WEIGHT_ONLY)
def test_onnxruntime_runs_packed_operators(
    scheme: str, prepare: Callable[[type[nn.Module]], Written], tmp_path: Path
) -> None:
    target, written = usable("onnxruntime"), prepare(Attention)
    _, artifact = written.export(written.model(scheme), target, tmp_path)
    _, layers = run(target, tmp_path / artifact.model, written)
    bits = SCHEMES[scheme].weight_bits
    ran = {layer.name: (layer.op, layer.precision) for layer in layers}
    narrow = f"int{bits} weights, float32 math"
    assert ran["table"] == ("GatherBlockQuantized", narrow)
    for name in ("qkv", "out", "up", "down"):
        assert ran[name] == ("MatMulNBits", narrow)
    assert ran["head"] == ("MatMulNBits", "int8 weights, float32 math")
    proto = onnx.load(tmp_path / artifact.model)
    attributes = [
        {a.name: a.i for a in n.attribute} for n in proto.graph.node if n.op_type == "MatMulNBits"
    ]
    assert all("accuracy_level" not in a for a in attributes)
    assert not [n.name for n in proto.graph.node if n.op_type == "DequantizeLinear"]


@pytest.mark.parametrize("scheme", WEIGHT_ONLY)
def test_openvino_keeps_weights_packed_and_activations_float(
    scheme: str, prepare: Callable[[type[nn.Module]], Written], tmp_path: Path
) -> None:
    target, written = usable("openvino"), prepare(Attention)
    _, artifact = written.export(written.model(scheme), target, tmp_path)
    _, layers = run(target, tmp_path / artifact.model, written)
    narrow = f"int{SCHEMES[scheme].weight_bits} weights, float32 math"
    assert {layer.name: layer.precision for layer in layers} == {
        **dict.fromkeys(("table", "qkv", "out", "up", "down"), narrow),
        "head": "int8 weights, float32 math",
    }
    text = (tmp_path / artifact.model).read_text(encoding="utf-8")
    assert ('element_type="i4"' in text) == (scheme == "w4a16")
    assert 'DYNAMIC_QUANTIZATION_GROUP_SIZE value="0"' in text
    assert any("activations stay float" in note for note in artifact.notes)


def test_reasons_of_all_layers(
    prepare: Callable[[type[nn.Module]], Written], tmp_path: Path
) -> None:
    """No layer counts as INT8, each has a text, and what ran is what was planned."""
    for network in (Perceptron, Picture):
        written = prepare(network)
        decisions, artifacts = {}, []
        folder = tmp_path / network.__name__
        folder.mkdir()
        for name in RUNTIMES:
            decisions[name], artifact = written.export(written.base, usable(name), folder)
            artifacts.append(artifact)
        executed = {name: name != "tensorrt" for name in RUNTIMES}
        results = verify(
            artifacts, decisions, folder, executed=executed, inputs=written.inputs, threads=1
        )
        for result in results:
            assert result.passed, result.reason
            assert result.integer_layers == 0
            assert result.weighted_layers == len(result.float_layers)
            math = "float16" if result.target == "tensorrt" else "float32"
            for name, text in result.float_layers.items():
                assert math in text
                assert (name in result.stored_layers) == (not text.startswith("stays float"))
        if network is Picture:
            texts = {result.target: result.float_layers for result in results}
            for layer in ("stem", "depthwise", "up"):
                assert texts["onnxruntime"][layer].startswith("stays float32")
                assert texts["tensorrt"][layer].startswith("stays float16")
                assert "unpacks those of convolutions when it loads" in texts["openvino"][layer]
        if network is Perceptron:
            # One output is one scale for all weights, which OpenVINO applies before the product.
            (last,) = (r.float_layers["6"] for r in results if r.target == "openvino")
            assert last.endswith("but the runtime ran it in float32")


def test_single_layers_among_integer_ones(
    prepare: Callable[[type[nn.Module]], Written], tmp_path: Path
) -> None:
    """A narrow product and a table in a W8A8 network: all else stays on integers."""
    written = prepare(Attention)
    graph = written.base.sited.model.graph.graph
    chosen = {"down": LayerBits(4, 16), "table": LayerBits(4, 16)}
    bits = allocate(graph, SCHEMES["w8a8"], chosen=chosen)
    model = quantize_model(written.base.sited, written.base.statistics, SCHEMES["w8a8"], bits, {})
    for name in RUNTIMES:
        target = usable(name)
        decisions, artifact = written.export(model, target, tmp_path)
        got, layers = run(target, tmp_path / artifact.model, written)
        (expected,) = simulate(decisions, *feeds(written))
        error = np.linalg.norm(got[0] - expected.numpy()) / expected.norm()
        # FP16 moves single codes of the integer layers by one, which is 0.4 % of a range each
        assert error < (3e-2 if decisions.profile.float16 else 1e-2)
        ran = {layer.name: layer.precision for layer in layers}
        if target.executed:
            assert ran["down"] == ran["table"] == "int4 weights, float32 math"
            assert ran["qkv"] == ran["up"] == "int8"


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_export_repeats_byte_for_byte(
    name: str, prepare: Callable[[type[nn.Module]], Written], tmp_path: Path
) -> None:
    target, written = usable(name), prepare(Words)
    contents = []
    for attempt in ("first", "second"):
        folder = tmp_path / attempt
        folder.mkdir()
        _, artifact = written.export(written.base, target, folder)
        contents.append({path: (folder / path).read_bytes() for path in artifact.files})
    assert contents[0] == contents[1]


@pytest.mark.parametrize("scheme", WEIGHT_ONLY)
def test_tensorrt_for_rtx_keeps_the_weights_packed(
    scheme: str, prepare: Callable[[type[nn.Module]], Written], tmp_path: Path
) -> None:
    builder = find_builder()
    if builder is None:
        pytest.skip("no TensorRT builder is installed")
    written = prepare(Attention)
    _, artifact = written.export(written.model(scheme), usable("tensorrt"), tmp_path)
    path = tmp_path / artifact.model
    proto = onnx.load(path)
    constants = {t.name: t.data_type for t in proto.graph.initializer}
    types = {"w4a16": onnx.TensorProto.INT4, "w8a16": onnx.TensorProto.INT8}
    unpacked = [n for n in proto.graph.node if n.op_type == "DequantizeLinear"]
    assert [constants[n.input[0]] for n in unpacked].count(types[scheme]) >= 4
    build = start_build(
        builder, path, path.parent, NETWORKS[Attention], compute_capabilities=("SM86",)
    )
    with build:
        (engine,) = build.wait().engines
    ran = {layer.name: layer.precision for layer in engine.layers}
    narrow = f"int{SCHEMES[scheme].weight_bits} weights, float16 math"
    # A residual sum fuses with the product before it; a kernel of its own unpacks for that one.
    assert {ran[layer] for layer in ("qkv", "up", "down")} == {narrow}


def test_rows_of_any_length_are_padded_where_that_is_smallest(
    quantize_module: Quantize, tmp_path: Path
) -> None:
    """MatMulNBits takes powers of two; what a row lacks is filled up with codes of zero."""
    target = usable("onnxruntime")
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(257, 100), nn.ReLU(), nn.Linear(100, 1024), nn.ReLU(), nn.Linear(1024, 3)
    )
    model = quantize_module(network, (257,), scheme="w8a16", samples=4)
    decisions = lower(model, target.profile(Cpu.AVX2), {})
    artifact = target.export(build_template(model.sited), decisions, tmp_path).wait()
    nodes = [n for n in onnx.load(tmp_path / artifact.model).graph.node if n.op_type != "Relu"]
    blocks = [{a.name: a.i for a in node.attribute}["block_size"] for node in nodes]
    assert blocks == [32, 128, 256]
    x = torch.randn(3, 257)
    with open_model("onnxruntime", tmp_path / artifact.model, threads=1) as runner:
        (got,) = runner.infer({"x0": x.numpy()}).values()
    # float32 sums of a thousand products, in another order
    np.testing.assert_allclose(got, simulate(decisions, x)[0].numpy(), rtol=1e-4, atol=1e-5)


def test_openvino_stores_odd_rows_in_eight_bits(
    prepare: Callable[[type[nn.Module]], Written],
) -> None:
    target, written = usable("openvino"), prepare(Words)
    decisions = lower(written.base, target.profile(Cpu.AVX2), {})
    assert decisions.placement.stored["linear"].bits == 8
    text = decisions.placement.float_layers["linear"]
    assert text.startswith("INT8 weights with one scale for each output channel")
    assert "129 inputs" in text
    assert "rows of odd length" in text
