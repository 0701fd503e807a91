"""The graph that no runtime executes: ONNX's own 4-bit quantizers, equal to the simulation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.errors import UnsupportedError
from edgekit.exporters.simulation import SimulationTarget
from edgekit.lowering import LoweredModel
from edgekit.quantized import QuantizedModel, lower
from edgekit.runners import open_model
from edgekit.simulate import simulate
from edgekit.template import build_template
from edgekit.types import Cpu, LayerBits

onnx = pytest.importorskip("onnx", reason="reads the exported graph")
pytest.importorskip("onnxruntime", reason="computes the exported graph")


class Network(nn.Module):
    """A residual sum, a clamp, and activations of both signs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = (
            nn.Conv2d(3, 8, 3),
            nn.Conv2d(8, 8, 1),
            nn.Conv2d(8, 8, 1),
        )
        self.six, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = self.right(self.pool(F.relu(self.left(x)))) + self.pool(x)
        return self.head(F.relu(self.six(x)).mean((2, 3)))


BITS = {"left": LayerBits(4, 4), "right": LayerBits(3, 4), "six": LayerBits(4, 6)}


@pytest.fixture(scope="module")
def lowered(quantize_module: Callable[..., QuantizedModel]) -> LoweredModel:
    torch.manual_seed(0)
    model = quantize_module(Network(), (3, 10, 10), scheme="w4a4", bits=BITS)
    return lower(model, SimulationTarget().profile(Cpu.AVX2), {})


@pytest.fixture(scope="module")
def written(lowered: LoweredModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulation")
    artifact = SimulationTarget().export(build_template(lowered.sited), lowered, folder).wait()
    assert artifact.files == ("simulation/model.onnx",)
    return folder / artifact.model


def test_file_has_one_quantizer_for_each_input(written: Path) -> None:
    proto = onnx.load(written)
    onnx.checker.check_model(proto, full_check=True)
    assert [entry.version for entry in proto.opset_import] == [21]
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    nodes = {node.output[0]: node for node in proto.graph.node}
    types = {}
    for layer in (node for node in proto.graph.node if node.op_type in ("Conv", "Gemm")):
        quantize = nodes[nodes[layer.input[0]].input[0]]
        assert quantize.op_type == "QuantizeLinear"
        types[layer.name] = stored[quantize.input[2]].data_type
    narrow, wide = onnx.TensorProto.UINT4, onnx.TensorProto.UINT8
    assert types == {"stem": wide, "left": narrow, "right": narrow, "six": wide, "head": wide}
    # of 6 bits in a type of 8, the grid's end is a clamp
    assert [node.op_type for node in proto.graph.node].count("Clip") == 1
    quantizers = [node for node in proto.graph.node if node.op_type == "QuantizeLinear"]
    # two of them before a pooling and a reshaping as well; no outputs and no sums
    assert len(quantizers) == len(types) + 2
    for layer in BITS:
        assert stored[f"{layer}.weight.codes"].data_type == onnx.TensorProto.INT4


def test_pooling_reads_the_grid_of_the_layer_behind_it(lowered: LoweredModel) -> None:
    """On a grid of 8 bits before it, values would be rounded twice."""
    edges = {
        (site.tensor, site.consumer): lowered.activations[site.index]
        for site in lowered.sited.sites
        if site.index in lowered.activations
    }
    before, behind = edges["relu_1", "max_pool2d"], edges["max_pool2d", "conv2d_2"]
    assert before == behind
    assert before.scheme.bits == 4


def test_signed_activations_have_a_zero_point(lowered: LoweredModel) -> None:
    (signed,) = (grid for grid in lowered.activations.values() if grid.scheme.bits == 6)
    assert not signed.scheme.signed
    assert 0 < signed.zero_point < 63


@pytest.mark.parametrize("stretch", [1.0, 5.0])
def test_onnxruntime_computes_the_simulation(
    lowered: LoweredModel, written: Path, stretch: float
) -> None:
    x = stretch * torch.randn(4, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    name = lowered.sited.model.inputs[0].name
    with open_model("simulation", written, threads=1, simulate=True) as runner:
        (got,) = runner.infer({name: x.numpy()}).values()
    expected = simulate(lowered, x)[0].numpy()
    # float sums in another order move a value across the edge of two codes here and there; one of
    # 15 steps is much, but it enters a mean over 64 positions
    assert np.linalg.norm(got - expected) < 0.01 * np.linalg.norm(expected)


def test_nothing_opens_it_as_an_executed_artifact(written: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"no runtime executes .* 'simulation'") as error:
        open_model("simulation", written)
    assert "simulate=True" in error.value.hint
