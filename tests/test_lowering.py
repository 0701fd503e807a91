"""Placement of quantizers on five-line graphs, for the rules of each real target.

Expected edges follow targets.md: TensorRT quantizes inputs of weighted operators and the identity
operand of a sum (1.2), OpenVINO the same with clamps absorbed (3), ONNX Runtime every tensor
between integer operators, network outputs of convolutions included (4.1).
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.capture import capture
from edgekit.graph import OpKind, op_kind
from edgekit.lowering import LoweringProfile, Placement, place
from edgekit.registry import RUNNERS, TARGETS, resolve
from edgekit.sites import SitedModel, insert_sites
from edgekit.types import Cpu, InputSpec


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.wide, self.up = nn.Conv2d(8, 4, 1), nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.position = nn.Parameter(torch.ones(1, 4, 1, 1))


class Chain(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))


class ChainToClampedOutput(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(self.b(F.relu6(self.a(x))))


class Residual(Parts):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return self.c(F.relu(x + self.b(x)))


class TwoBranches(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.a(x) + self.b(x))


class Padded(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.pad(F.relu(self.a(x)), (0, 1, 0, 1)))


class PaddedInput(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(F.pad(x, (1, 2)))


class PaddedWithOne(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.pad(self.a(x), (0, 1), value=1.0))


class Pooled(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.max_pool2d(F.relu(self.a(x)), 2))


class Concatenated(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.wide(torch.cat([F.relu(self.a(x)), self.b(x)], 1))


class ReadByInteger(Parts):
    """The clamped tensor feeds an integer and a float operator."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.a(x))
        return self.b(x), torch.sigmoid(x)


class Swish(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.silu(self.a(x)))


class Flattened(Parts):
    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(F.relu(self.a(x)), 1).flatten(1)
        return self.second(F.relu(self.first(x)))


class Permuted(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.first(F.relu(self.a(x)).permute(0, 2, 3, 1))


class Upsampled(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.up(self.a(x)))


class Returned(Parts):
    """An inner tensor is a network output too."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.a(x)
        return x, self.b(x)


class SumWithParameter(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) + self.position)


class SumWithItself(Parts):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x + x)


class LeakyChain(Parts):
    """A clamp whose lower bound is not zero cannot hide in a range."""

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).clamp(-1, 1))


ORT, OPENVINO, TENSORRT = "onnxruntime", "openvino", "tensorrt"

EDGES: dict[type[Parts], dict[str, str]] = {
    Chain: {
        ORT: "x>conv2d relu>conv2d_1 conv2d_1>output",
        OPENVINO: "x>conv2d relu>conv2d_1",
        TENSORRT: "x>conv2d relu>conv2d_1",
    },
    ChainToClampedOutput: {
        ORT: "x>conv2d relu6>conv2d_1 relu6_1>output",
        OPENVINO: "x>conv2d relu6>conv2d_1",
        TENSORRT: "x>conv2d relu6>conv2d_1",
    },
    Residual: {
        ORT: "x>conv2d relu>conv2d_1 conv2d_1>add relu>add relu_1>conv2d_2 conv2d_2>output",
        OPENVINO: "x>conv2d relu>conv2d_1 relu>add relu_1>conv2d_2",
        TENSORRT: "x>conv2d relu>conv2d_1 relu>add relu_1>conv2d_2",
    },
    TwoBranches: {
        ORT: "x>conv2d x>conv2d_1 conv2d>add conv2d_1>add add>conv2d_2 conv2d_2>output",
        OPENVINO: "x>conv2d x>conv2d_1 conv2d>add add>conv2d_2",
        TENSORRT: "x>conv2d x>conv2d_1 conv2d>add add>conv2d_2",
    },
    Padded: {
        ORT: "x>conv2d relu>pad conv2d_1>output",
        OPENVINO: "x>conv2d relu>pad",
        TENSORRT: "x>conv2d relu>pad",
    },
    PaddedInput: {ORT: "x>pad conv2d>output", OPENVINO: "x>pad", TENSORRT: "x>pad"},
    PaddedWithOne: {
        ORT: "x>conv2d conv2d>pad pad>conv2d_1 conv2d_1>output",
        OPENVINO: "x>conv2d pad>conv2d_1",
        TENSORRT: "x>conv2d pad>conv2d_1",
    },
    Pooled: {
        ORT: "x>conv2d relu>max_pool2d max_pool2d>conv2d_1 conv2d_1>output",
        OPENVINO: "x>conv2d relu>max_pool2d max_pool2d>conv2d_1",
        TENSORRT: "x>conv2d relu>max_pool2d max_pool2d>conv2d_1",
    },
    Concatenated: {
        ORT: "x>conv2d x>conv2d_1 relu>cat conv2d_1>cat cat>conv2d_2 conv2d_2>output",
        OPENVINO: "x>conv2d x>conv2d_1 relu>cat conv2d_1>cat cat>conv2d_2",
        TENSORRT: "x>conv2d x>conv2d_1 cat>conv2d_2",
    },
    ReadByInteger: {
        ORT: "x>conv2d relu>conv2d_1 relu>sigmoid conv2d_1>output",
        OPENVINO: "x>conv2d relu>conv2d_1",
        TENSORRT: "x>conv2d relu>conv2d_1",
    },
    Swish: {
        ORT: "x>conv2d conv2d>silu silu>conv2d_1 conv2d_1>output",
        OPENVINO: "x>conv2d silu>conv2d_1",
        TENSORRT: "x>conv2d silu>conv2d_1",
    },
    Flattened: {
        ORT: "x>conv2d relu>adaptive_avg_pool2d adaptive_avg_pool2d>flatten flatten>linear "
        "relu_1>linear_1",
        OPENVINO: "x>conv2d relu>adaptive_avg_pool2d adaptive_avg_pool2d>flatten flatten>linear "
        "relu_1>linear_1",
        TENSORRT: "x>conv2d adaptive_avg_pool2d>flatten flatten>linear relu_1>linear_1",
    },
    Permuted: {
        ORT: "x>conv2d relu>permute permute>linear",
        OPENVINO: "x>conv2d relu>permute permute>linear",
        TENSORRT: "x>conv2d relu>permute permute>linear",
    },
    Returned: {
        ORT: "x>conv2d conv2d>output conv2d>conv2d_1 conv2d_1>output",
        OPENVINO: "x>conv2d conv2d>conv2d_1",
        TENSORRT: "x>conv2d conv2d>conv2d_1",
    },
    SumWithParameter: {
        OPENVINO: "x>conv2d add>conv2d_1",
        TENSORRT: "x>conv2d add>conv2d_1",
    },
    SumWithItself: {
        ORT: "x>conv2d conv2d>add conv2d>add add>conv2d_1 conv2d_1>output",
        OPENVINO: "x>conv2d add>conv2d_1",
        TENSORRT: "x>conv2d add>conv2d_1",
    },
    LeakyChain: {
        ORT: "x>conv2d conv2d>clamp clamp>conv2d_1 conv2d_1>output",
        OPENVINO: "x>conv2d clamp>conv2d_1",
        TENSORRT: "x>conv2d clamp>conv2d_1",
    },
    Upsampled: {
        OPENVINO: "x>conv2d conv2d>conv_transpose2d conv_transpose2d>conv2d_1",
        TENSORRT: "x>conv2d conv2d>conv_transpose2d conv_transpose2d>conv2d_1",
    },
}

ABSORBED: dict[type[Parts], dict[str, set[str]]] = {
    Chain: {ORT: {"relu"}, OPENVINO: {"relu"}},
    # a float output keeps its clamp where the target does not quantize it
    ChainToClampedOutput: {ORT: {"relu6", "relu6_1"}, OPENVINO: {"relu6"}},
    # OpenVINO adds into an accumulator: the sum is float there, and a float reader needs the clamp
    Residual: {ORT: {"relu", "relu_1"}},
    Padded: {ORT: {"relu"}, OPENVINO: {"relu"}},
    Pooled: {ORT: {"relu"}, OPENVINO: {"relu"}},
    Concatenated: {ORT: {"relu"}, OPENVINO: {"relu"}},
    ReadByInteger: {ORT: {"relu"}},  # ONNX Runtime's convolution is quantized before the reader
    Flattened: {ORT: {"relu", "relu_1"}, OPENVINO: {"relu", "relu_1"}},
    Permuted: {ORT: {"relu"}, OPENVINO: {"relu"}},
}

SHARED_GRIDS: dict[type[Parts], dict[str, str]] = {
    Pooled: {"max_pool2d": "relu"},
    Flattened: {"flatten": "adaptive_avg_pool2d"},
    Permuted: {"permute": "relu"},
}


@pytest.fixture(scope="module")
def sited() -> dict[type[Parts], SitedModel]:
    torch.manual_seed(0)
    return {
        network: insert_sites(capture(network(), [InputSpec("x", (1, 4, 8, 8))]))
        for network in EDGES
    }


def profile_of(target: str) -> LoweringProfile:
    profile: LoweringProfile = resolve(TARGETS, target, "target")().profile(Cpu.AVX2)
    return profile


def placed(model: SitedModel, target: str) -> Placement:
    exporter = resolve(TARGETS, target, "target")()
    return place(model, exporter.profile(Cpu.AVX2), exporter.unsupported(model))


CASES = [(network, target) for network, targets in EDGES.items() for target in targets]


@pytest.mark.parametrize(("network", "target"), CASES, ids=lambda value: getattr(value, "__name__", value))  # fmt: skip  # noqa: E501
def test_quantized_edges(
    sited: dict[type[Parts], SitedModel], network: type[Parts], target: str
) -> None:
    model = sited[network]
    found = placed(model, target)
    edges = [f"{model.sites[i].tensor}>{model.sites[i].consumer}" for i in found.edges]
    assert sorted(edges) == sorted(EDGES[network][target].split())
    assert found.absorbed == ABSORBED.get(network, {}).get(target, set())
    shared = {tensor: owner for tensor, owner in found.tensors.items() if tensor != owner}
    assert shared == SHARED_GRIDS.get(network, {})
    assert set(found.tensors) == {model.sites[i].tensor for i in found.edges}
    assert found.float_layers == {}


def test_tables_name_networks_that_exist() -> None:
    assert set(ABSORBED) <= set(EDGES)
    assert set(SHARED_GRIDS) <= set(EDGES)
    assert {target for targets in EDGES.values() for target in targets} == set(RUNNERS)


def test_node_with_a_reason_stays_in_float(sited: dict[type[Parts], SitedModel]) -> None:
    found = place(sited[Chain], profile_of(ORT), {"conv2d": "because"})
    edges = {(sited[Chain].sites[i].tensor, sited[Chain].sites[i].consumer) for i in found.edges}
    assert edges == {("relu", "conv2d_1"), ("conv2d_1", "output")}
    assert found.absorbed == set()  # the clamp behind a float operator has to be computed
    assert found.float_layers == {"conv2d": "because"}
    assert found.integer == {"conv2d_1"}


def test_kind_without_kernel_is_named(sited: dict[type[Parts], SitedModel]) -> None:
    profile = profile_of(TENSORRT)
    narrowed = replace(profile, integer_kinds=profile.integer_kinds - {OpKind.CONV_TRANSPOSE})
    found = place(sited[Upsampled], narrowed, {})
    assert found.float_layers == {
        "conv_transpose2d": "tensorrt has no integer kernel for conv_transpose"
    }


class Scores(nn.Module):
    """Attention with a mask that the network computes, as most language models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 24)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = self.project(x).chunk(3, -1)
        hidden = (1.0 - mask[:, None].to(x.dtype)) * torch.finfo(x.dtype).min
        return ((query @ key.transpose(1, 2) + hidden).softmax(-1)) @ value


@pytest.mark.parametrize("target", TARGETS)
def test_masked_scores_are_not_rounded(target: str) -> None:
    """One scale for scores near one and a mask of thousands would leave nothing of the scores."""
    inputs = [InputSpec("x", (1, 6, 8)), InputSpec("mask", (1, 6), "int64")]
    model = insert_sites(capture(Scores(), inputs))
    found = placed(model, target)
    sums = {n.name for n in model.model.graph.graph.nodes if op_kind(n) is OpKind.ADD}
    assert sums == {"add"}
    touched = {(model.sites[i].tensor, model.sites[i].consumer) for i in found.edges}
    assert not [edge for edge in touched if sums & set(edge)]


def test_transposed_convolutions_say_why_they_run_in_float() -> None:
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain = nn.ConvTranspose2d(8, 8, 2, 2)
            self.grouped = nn.ConvTranspose2d(8, 8, 2, 2, groups=4)

        def forward(self, x: Tensor) -> Tensor:
            return self.grouped(self.plain(x))

    model = insert_sites(capture(Up(), [InputSpec("x", (1, 8, 4, 4))]))
    plain, grouped = "conv_transpose2d", "conv_transpose2d_1"
    onnxruntime, openvino = placed(model, ORT), placed(model, OPENVINO)
    assert set(onnxruntime.float_layers) == {plain, grouped}
    assert all("no INT8 kernel" in reason for reason in onnxruntime.float_layers.values())
    assert onnxruntime.integer == {plain, grouped}, "they are quantized, and computed in float"
    assert set(openvino.float_layers) == {grouped}
    assert "with groups" in openvino.float_layers[grouped]
    assert openvino.integer == {plain}
    assert placed(model, TENSORRT).float_layers == {}


class Floating(nn.Module):
    """What no target runs on integers, and a weight that stays computed."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.GRU(8, 8, batch_first=True)
        self.mix, self.row = nn.Parameter(torch.randn(2, 8, 6)), nn.Parameter(torch.randn(1, 600))
        self.last = nn.Linear(6, 600)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum("nth,chd->nctd", self.memory(x)[0], self.mix)
        return F.linear(self.last(y), self.row.expand(600, 600))


@pytest.mark.parametrize("target", TARGETS)
def test_layers_that_no_target_runs_on_integers_are_listed(target: str) -> None:
    model = insert_sites(capture(Floating(), [InputSpec("x", (1, 3, 8))]))
    found = placed(model, target)
    assert set(found.float_layers) == {"gru", "einsum", "linear_1"}
    assert "recurrent layers" in found.float_layers["gru"]
    assert found.float_layers["einsum"].endswith("no integer kernel for product with a constant")
    assert "cannot be folded" in found.float_layers["linear_1"]
    assert found.integer == {"linear"}
    quantized = {model.sites[index].consumer for index in found.edges}
    assert quantized <= {"linear", "linear_1"}, "nothing is rounded for a float operator"
    # ONNX Runtime may quantize a result once more; the float layer's own weight is left alone
    assert target == ORT or quantized == {"linear"}


def test_clamp_stays_where_the_profile_absorbs_none(
    sited: dict[type[Parts], SitedModel],
) -> None:
    profile = replace(profile_of(ORT), absorb_clamps=False)
    found = place(sited[Chain], profile, {})
    edges = {(sited[Chain].sites[i].tensor, sited[Chain].sites[i].consumer) for i in found.edges}
    # the convolution's own result is quantized now, and the clamp's once more
    assert ("conv2d", "relu") in edges
    assert ("relu", "conv2d_1") in edges
    assert found.absorbed == set()


def test_grouped_convolution_that_tensorrt_cannot_run_stays_in_float() -> None:
    class Groups(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.narrow = nn.Conv2d(16, 24, 3, padding=1, groups=8)  # 2 and 3 in each group
            self.wide = nn.Conv2d(24, 24, 3, padding=1, groups=3)  # 8 and 8
            self.depthwise = nn.Conv2d(24, 24, 3, groups=24)

        def forward(self, x: Tensor) -> Tensor:
            return self.depthwise(self.wide(self.narrow(x)))

    model = insert_sites(capture(Groups(), [InputSpec("x", (1, 16, 8, 8))]))
    found = placed(model, TENSORRT)
    assert set(found.float_layers) == {"conv2d"}
    assert "multiples of 4" in found.float_layers["conv2d"]
    assert found.integer == {"conv2d_1", "conv2d_2"}
    assert placed(model, ORT).float_layers == {}
    assert placed(model, OPENVINO).float_layers == {}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("cpu", Cpu)
def test_profiles_are_consistent(target: str, cpu: Cpu) -> None:
    profile = resolve(TARGETS, target, "target")().profile(cpu)
    assert profile.target == target
    assert profile.quantized_outputs <= profile.integer_kinds
    for scheme in (profile.unsigned, profile.signed):
        assert scheme.bits == 8
    # absorbing a clamp needs a grid whose lowest code is zero
    assert not profile.absorb_clamps or (profile.unsigned.symmetric and not profile.unsigned.signed)
    on_cpu = target in (ORT, OPENVINO)
    assert (profile.pairing.value == "none") == (not on_cpu or cpu is not Cpu.AVX2)
