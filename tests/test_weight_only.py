"""Weight-only schemes: which layers a target stores, what the report says, what is simulated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.errors import UnsupportedError
from edgekit.graph import OpKind
from edgekit.lowering import LoweredModel, LoweringProfile
from edgekit.quant.saturation import Pairing
from edgekit.quantized import QuantizedModel, lower
from edgekit.simulate import simulate
from edgekit.sites import Role
from edgekit.types import InputSpec, LayerBits, TensorScheme
from edgekit.weight_only import StoredWeights, WeightOnlyRules

Quantize = Callable[..., QuantizedModel]

KINDS = frozenset({OpKind.CONV, OpKind.LINEAR, OpKind.ADD, OpKind.MAX_POOL, OpKind.MATMUL})
RULES = WeightOnlyRules(
    {
        (OpKind.LINEAR, 4): StoredWeights(),
        (OpKind.LINEAR, 8): StoredWeights(remark="slowly"),
        (OpKind.EMBEDDING, 4): StoredWeights(),
    },
    {OpKind.CONV: "stays float32: because"},
)
PROFILE = LoweringProfile(
    target="any",
    integer_kinds=KINDS,
    quantized_outputs=KINDS,
    unsigned=TensorScheme(8, signed=False, symmetric=True),
    signed=TensorScheme(8, signed=False, symmetric=False),
    absorb_clamps=True,
    fused_sum=False,
    pairing=Pairing.FLAT,
    integer_bias=True,
    weight_only=RULES,
)


class Mixed(nn.Module):
    """An embedding, a convolution over its columns, linear layers of several widths."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.conv = nn.Embedding(20, 32), nn.Conv1d(32, 32, 3, padding=1)
        self.wide, self.odd, self.last = nn.Linear(32, 100), nn.Linear(100, 32), nn.Linear(32, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        x = x + F.relu(self.conv(x.transpose(1, 2))).transpose(1, 2)
        return self.last(F.relu(self.odd(F.relu(self.wide(x)))).amax(1))


IDS = InputSpec("ids", (1, 6), "int64")


@pytest.fixture(scope="module")
def model(quantize_module: Quantize) -> QuantizedModel:
    torch.manual_seed(0)
    return quantize_module(Mixed(), IDS, scheme="w4a16")


@pytest.fixture(scope="module")
def lowered(model: QuantizedModel) -> LoweredModel:
    return lower(model, PROFILE, {})


def texts(lowered: LoweredModel) -> Mapping[str, str]:
    return lowered.placement.float_layers


def test_widths(model: QuantizedModel) -> None:
    narrow, wide = LayerBits(4, 16), LayerBits(8, 16)
    assert model.bits == {
        "table": narrow, "conv": wide, "wide": narrow, "odd": narrow, "last": wide,
    }  # fmt: skip
    assert {name: codes.block for name, codes in model.codes.items()} == {
        "table": None, "conv": None, "wide": 16, "odd": None, "last": None,
    }  # fmt: skip


def test_nothing_but_weights_is_quantized(lowered: LoweredModel) -> None:
    assert not lowered.activations
    assert not lowered.bias_scales
    assert not lowered.placement.integer
    assert not lowered.placement.absorbed
    roles = {lowered.sited.sites[index].role for index in lowered.weights}
    assert roles == {Role.WEIGHT}


def test_every_layer_has_a_text(lowered: LoweredModel) -> None:
    assert texts(lowered) == {
        "embedding": "INT4 table with one scale for each row, float32 math",
        "conv1d": "stays float32: because",
        "linear": "INT4 weights in blocks of 16, the largest that splits 32 inputs, float32 math",
        "linear_1": "INT4 weights with one scale for each output channel (no block of 16 or more "
        "splits 100 inputs), float32 math",
        "linear_2": "INT8 weights with one scale for each output channel, float32 math; slowly",
    }
    stored = {name: layer.precision for name, layer in lowered.placement.stored.items()}
    assert stored == {
        "embedding": "int4 weights, float32 math",
        "linear": "int4 weights, float32 math",
        "linear_1": "int4 weights, float32 math",
        "linear_2": "int8 weights, float32 math",
    }


def test_target_that_needs_blocks(model: QuantizedModel) -> None:
    rules = WeightOnlyRules({(OpKind.LINEAR, 4): StoredWeights(per_channel=False)}, math="float16")
    found = lower(model, replace(PROFILE, weight_only=rules), {})
    assert set(found.placement.stored) == {"linear"}
    assert texts(found)["linear_1"] == (
        "stays float16: INT4 weights need blocks, and no block of 16 or more splits 100 inputs"
    )
    assert texts(found)["embedding"] == "no kernel takes INT4 weights of embedding"


def test_target_that_stores_nothing_is_refused(model: QuantizedModel) -> None:
    profile = replace(PROFILE, weight_only=WeightOnlyRules({}, {OpKind.LINEAR: "it cannot"}))
    with pytest.raises(UnsupportedError, match=r"w4a16 .* 'any': .*'conv' first .*nearest is w4a8"):
        lower(model, profile, {})


def test_simulation_computes_with_the_stored_weights(
    model: QuantizedModel, lowered: LoweredModel
) -> None:
    ids = torch.randint(20, (4, 6), generator=torch.Generator().manual_seed(3))
    sites = {s.index: s for s in lowered.sited.sites}
    weights = {sites[i].consumer: codes.dequantize() for i, codes in lowered.weights.items()}
    biases = {sites[i].consumer: bias for i, bias in lowered.biases.items()}
    graph = model.sited.model.graph
    x = weights["embedding"][ids]
    conv = F.conv1d(x.transpose(1, 2), graph.conv.weight, graph.conv.bias, padding=1)
    x = x + F.relu(conv).transpose(1, 2)
    for name in ("linear", "linear_1"):
        x = F.relu(F.linear(x, weights[name], biases[name]))
    expected = F.linear(x.amax(1), weights["linear_2"], biases["linear_2"])
    torch.testing.assert_close(simulate(lowered, ids)[0], expected)


def test_biases_make_up_for_the_mean_error(model: QuantizedModel, lowered: LoweredModel) -> None:
    site = next(s for s in lowered.sited.sites if s.consumer == "linear" and s.role is Role.BIAS)
    weight = model.sited.model.graph.wide.weight
    mean = model.statistics.tensors["add"].channel_mean
    error = model.codes["wide"].dequantize() - weight
    corrected = model.sited.model.graph.wide.bias - error @ mean
    torch.testing.assert_close(lowered.biases[site.index], corrected)


class Tied(nn.Module):
    """A table that is also the weight of the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner = nn.Embedding(48, 32), nn.Linear(32, 32)

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(F.gelu(self.inner(self.table(ids))), self.table.weight)


def test_shared_table_has_one_set_of_codes(quantize_module: Quantize) -> None:
    torch.manual_seed(0)
    model = quantize_module(Tied(), IDS, scheme="w4a16", bits={"table": LayerBits(4, 16)})
    assert model.codes["table"].block is None, "rows have one scale"
    assert model.codes["inner"].block == 16
    lowered = lower(model, PROFILE, {})
    shared = [codes for i, codes in lowered.weights.items() if codes is model.codes["table"]]
    assert len(shared) == 2
    assert "also an embedding's table" in texts(lowered)["linear_1"]


def test_single_weight_only_layer_among_integer_ones(quantize_module: Quantize) -> None:
    torch.manual_seed(0)
    bits = {"wide": LayerBits(4, 16), "table": LayerBits(4, 16)}
    model = quantize_module(Mixed(), IDS, bits=bits)
    lowered = lower(model, replace(PROFILE, quantized_outputs=frozenset()), {})
    assert set(lowered.placement.stored) == {"embedding", "linear"}
    assert {"conv1d", "linear_1", "linear_2"} <= lowered.placement.integer
    consumers = {lowered.sited.sites[index].consumer for index in lowered.activations}
    assert "linear" not in consumers
    assert "linear_1" in consumers
