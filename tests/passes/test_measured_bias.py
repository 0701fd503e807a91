"""Bias correction measured on the quantized network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.lowering import LoweredModel
from edgekit.passes.measured_bias import with_measured_bias
from edgekit.quant.affine import QParams, WeightCodes
from edgekit.quantized import QuantizedModel, lower
from edgekit.reference import Reference
from edgekit.registry import TARGETS, resolve
from edgekit.simulate import simulate
from edgekit.sites import Role
from edgekit.synthetic import SyntheticSet
from edgekit.types import Cpu, TensorScheme

Quantize = Callable[..., QuantizedModel]
U8 = TensorScheme(8, signed=False, symmetric=False)


class Network(nn.Module):
    """Two layers with a clamp behind, a sum, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.middle = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return self.head((x + F.relu6(self.middle(x))).mean((2, 3)))


def lowered_for(quantized: QuantizedModel, target: str) -> LoweredModel:
    exporter = resolve(TARGETS, target, "target")()
    return lower(quantized, exporter.profile(Cpu.AVX2), exporter.unsupported(quantized.sited))


def coarse(lowered: LoweredModel) -> LoweredModel:
    """The same decisions with weights rounded down to multiples of 32 steps: strong errors."""
    weights = {
        index: WeightCodes(
            torch.floor(codes.codes / 32).mul(32).to(torch.int8), codes.scale, codes.axis
        )
        for index, codes in lowered.weights.items()
    }
    return replace(lowered, weights=weights)


def images(count: int, seed: int) -> Tensor:
    return 0.5 + torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def measured(lowered: LoweredModel, made: SyntheticSet) -> LoweredModel:
    """The correction on inputs for the unaltered network."""
    return with_measured_bias(lowered, Reference(lowered.sited.model.graph, made.inputs))


def set_of(x: Tensor) -> SyntheticSet:
    return SyntheticSet((x,), None, "test")


@pytest.fixture(scope="module")
def module() -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network().eval()


@pytest.fixture(scope="module")
def quantized(module: Network, quantize_module: Quantize) -> QuantizedModel:
    return quantize_module(module, (3, 8, 8))


def mean_error(lowered: LoweredModel, module: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((simulate(lowered, x)[0] - module(x)).mean(0).norm())


@pytest.mark.parametrize("target", TARGETS)
def test_mean_error_of_the_output_falls(
    target: str, module: Network, quantized: QuantizedModel
) -> None:
    before = coarse(lowered_for(quantized, target))
    kept = {index: bias.clone() for index, bias in before.biases.items()}
    after = measured(before, set_of(images(63, 1)))
    assert all(torch.equal(before.biases[index], bias) for index, bias in kept.items())
    # what the last layer sees is corrected, and of its own error 1 in 64 is left
    assert mean_error(after, module, images(63, 1)) < mean_error(before, module, images(63, 1)) / 20
    # other inputs have other means: 63 of them differ by an eighth of their spread
    assert mean_error(after, module, images(63, 2)) < mean_error(before, module, images(63, 2)) / 5


def test_integer_biases_stay_on_their_grid(quantized: QuantizedModel) -> None:
    before = coarse(lowered_for(quantized, "onnxruntime"))
    assert before.bias_scales
    after = measured(before, set_of(images(16, 1)))
    for index, step in after.bias_scales.items():
        codes = after.biases[index] / step
        assert torch.equal(after.biases[index], torch.round(codes) * step)
        assert not torch.equal(after.biases[index], before.biases[index])


@pytest.mark.parametrize("target", TARGETS)
def test_exact_network_keeps_its_biases(
    target: str, quantized: QuantizedModel, module: Network
) -> None:
    """Nothing is quantized but weights that are exact: there is no error to correct."""
    found = lowered_for(quantized, target)
    by_role = {s.index: s for s in found.sited.sites if s.role is Role.WEIGHT}
    plain = {s.index: p.detach() for s, p in zip(by_role.values(), weights_of(module), strict=True)}
    exact = replace(
        found,
        activations={},
        weights={index: Exact(w) for index, w in plain.items()},  # type: ignore[misc]
        biases={
            s.index: b.detach()
            for s, b in zip(
                (s for s in found.sited.sites if s.role is Role.BIAS),
                (module.first.bias, module.middle.bias, module.head.bias),
                strict=True,
            )
        },
        bias_scales={},
    )
    after = measured(exact, set_of(images(8, 1)))
    for index, bias in exact.biases.items():
        assert torch.equal(after.biases[index], bias)


class Exact(WeightCodes):
    """Codes that stand for the weight itself."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight, torch.ones(1), 0)

    def dequantize(self) -> Tensor:
        """Return the weight."""
        return self.codes


def weights_of(module: Network) -> list[Tensor]:
    return [module.first.weight, module.middle.weight, module.head.weight]


# -- the active region --------------------------------------------------------------------------


def one_layer(quantize: Quantize, behind: nn.Module, grid: QParams) -> LoweredModel:
    """A layer that doubles its input, with a given grid in front of it."""
    layer = nn.Conv2d(1, 1, 1)
    with torch.no_grad():
        layer.weight.fill_(2.0)
        layer.bias.fill_(-0.5)  # type: ignore[union-attr]
    found = lowered_for(quantize(nn.Sequential(layer, behind), (1, 4, 4)), "openvino")
    index = next(s.index for s in found.sited.sites if s.role is Role.ACTIVATION)
    bias = next(s.index for s in found.sited.sites if s.role is Role.BIAS)
    return replace(
        found, activations={index: grid}, biases={bias: torch.tensor([-0.5])}, bias_scales={}
    )


CLAMPS = {
    # clamp, grid, inputs: half of them exact, half beyond the grid and beyond the clamp as well
    "below": (nn.ReLU(), QParams(1 / 64, 0, U8), (1.0, -1.0)),
    "above": (nn.ReLU6(), QParams(1 / 32, 0, U8), (1.0, 20.0)),
}


@pytest.mark.parametrize("name", CLAMPS)
def test_errors_where_the_clamp_cuts_do_not_shift_the_bias(
    name: str, quantize_module: Quantize
) -> None:
    clamp, grid, (inside, outside) = CLAMPS[name]
    x = torch.full((7, 1, 4, 4), inside)
    x[:, :, :, ::2] = outside
    results = {}
    for behind in (clamp, nn.Tanh()):
        lowered = one_layer(quantize_module, behind, grid)
        (results[type(behind)],) = measured(lowered, set_of(x)).biases.values()
    # 127 * (2 / 127) may miss 2 by a rounding
    torch.testing.assert_close(results[type(clamp)], torch.tensor([-0.5]), rtol=0, atol=1e-6)
    # with no clamp behind the mean counts: half of the positions miss by 2 * (outside - border),
    # and 7 samples are weighed against one without error
    border = min(max(outside, grid.minimum), grid.maximum)
    expected = -0.5 + 7 / 8 * 0.5 * 2 * (outside - border)
    torch.testing.assert_close(results[nn.Tanh], torch.tensor([expected]), rtol=0, atol=1e-5)


def test_errors_inside_the_clamp_count_alone(quantize_module: Quantize) -> None:
    """One column of four is active, and its error is all that decides."""
    lowered = one_layer(quantize_module, nn.ReLU(), QParams(0.75, 0, U8))
    x = torch.full((7, 1, 4, 4), -3.0)
    x[:, :, :, 0] = 1.0  # is rounded to 0.75, so the layer misses by 0.5
    (bias,) = measured(lowered, set_of(x)).biases.values()
    # 7 * 4 active positions against 16 without error
    torch.testing.assert_close(bias, torch.tensor([-0.5 + 0.5 * 28 / 44]), rtol=0, atol=1e-6)


# -- what it runs on ----------------------------------------------------------------------------


def test_layer_without_bias_passes(quantize_module: Quantize) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.Flatten(), nn.Linear(4 * 36, 2, bias=True)
    ).eval()
    before = coarse(lowered_for(quantize_module(module, (3, 8, 8)), "onnxruntime"))
    x = images(63, 1)
    after = measured(before, set_of(x))
    assert set(after.biases) == set(before.biases)
    assert mean_error(after, module, x) < mean_error(before, module, x) / 20
