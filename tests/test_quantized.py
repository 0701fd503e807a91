"""What each target's lowering derives from the neutral model, against independent arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.lowering import LoweredModel, LoweringProfile
from edgekit.quant.affine import QParams
from edgekit.quantized import QuantizedModel, lower
from edgekit.registry import TARGETS, resolve
from edgekit.sites import Role, layer_name
from edgekit.types import Cpu

Quantize = Callable[..., QuantizedModel]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 6, 3)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.head = nn.Linear(4, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm(self.stem(x)))
        x = self.up(self.body(F.pad(x, (1, 0, 1, 0))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.fixture(scope="module")
def model(quantize_module: Quantize) -> QuantizedModel:
    torch.manual_seed(0)
    module = Network()
    with torch.no_grad():
        module.stem.weight[0] = 1.0  # pairs of this channel overflow, those of channel 1 cannot
        module.stem.weight[1] = 0.0
        module.stem.weight[1, 0, 0, 0] = 1.0
        module.norm.weight.uniform_(0.5, 2.0)
    return quantize_module(module, (3, 10, 10))


def profile_of(target: str, cpu: Cpu = Cpu.AVX2) -> LoweringProfile:
    profile: LoweringProfile = resolve(TARGETS, target, "target")().profile(cpu)
    return profile


def lowered(model: QuantizedModel, target: str, cpu: Cpu = Cpu.AVX2) -> LoweredModel:
    exporter = resolve(TARGETS, target, "target")()
    found: LoweredModel = lower(model, exporter.profile(cpu), exporter.unsupported(model.sited))
    return found


def grid_of(found: LoweredModel, tensor: str) -> QParams:
    """The one grid of a tensor, on every edge that carries it."""
    grids = {
        found.activations[site.index]
        for site in found.sited.sites
        if site.tensor == tensor and site.index in found.activations
    }
    assert len(grids) == 1
    return grids.pop()


def site_index(model: QuantizedModel, consumer: str, role: Role) -> int:
    (index,) = (s.index for s in model.sited.sites if (s.consumer, s.role) == (consumer, role))
    return index


def parameter(model: QuantizedModel, name: str) -> Tensor:
    return model.sited.model.graph.state_dict()[name]


def test_codes_are_full_range_for_every_layer(model: QuantizedModel) -> None:
    assert set(model.codes) == {"stem", "body", "up", "head"}
    for name, codes in model.codes.items():
        weight = parameter(model, f"{name}.weight")
        axis = 1 if name == "up" else 0
        assert codes.axis == axis
        others = tuple(a for a in range(weight.dim()) if a != axis)
        peak = np.abs(weight.numpy()).max(others)
        assert codes.scale.numpy() == pytest.approx(peak / 127, rel=1e-6)
        assert codes.codes.abs().amax(others).tolist() == [127] * weight.shape[axis]


@pytest.mark.parametrize("target", TARGETS)
def test_grids_follow_sign_and_profile(model: QuantizedModel, target: str) -> None:
    found, profile = lowered(model, target), profile_of(target)
    image = found.sited.sites[0].tensor
    assert grid_of(found, image).scheme == profile.signed
    assert grid_of(found, "relu6").scheme == profile.unsigned
    if profile.absorb_clamps:  # the clamp is gone: its grid must end where the clamp did
        assert grid_of(found, "relu6").minimum == 0.0
        assert grid_of(found, "relu6").maximum <= 6.0 * (1 + 1e-6)
    for grid in found.activations.values():
        assert grid.scheme in (profile.signed, profile.unsigned)
        if grid.scheme.symmetric:
            assert grid.zero_point == 0


@pytest.mark.parametrize("target", TARGETS)
def test_grids_lie_within_what_was_observed(model: QuantizedModel, target: str) -> None:
    found = lowered(model, target)
    for tensor in set(found.placement.tensors.values()):
        observed, grid = model.statistics.tensors[tensor], grid_of(found, tensor)
        low, high = min(observed.minimum, 0.0), max(observed.maximum, 0.0)
        reach = max(-low, high)  # a symmetric grid reaches as far on the smaller side
        # an asymmetric zero point is rounded; FP16 scales are rounded up by 2**-10 at most
        slack = grid.scale / 2 + reach * 2.0**-10
        assert grid.maximum <= (reach if grid.scheme.symmetric else high) + slack
        below = reach + grid.scale if grid.scheme.symmetric else -low
        assert -grid.minimum <= below + slack


def test_prior_narrows_a_grid(model: QuantizedModel) -> None:
    tensors = dict(model.statistics.tensors)
    tensors["relu6"] = replace(tensors["relu6"], prior=(0.0, 0.5))
    narrowed = replace(model, statistics=replace(model.statistics, tensors=tensors))
    grid = grid_of(lowered(narrowed, "onnxruntime"), "relu6")
    assert grid.maximum <= 0.5 * (1 + 1e-6)
    assert grid.maximum < grid_of(lowered(model, "onnxruntime"), "relu6").maximum


def test_scales_for_tensorrt_are_fp16_numbers(model: QuantizedModel) -> None:
    found = lowered(model, "tensorrt")
    scales = [grid.scale for grid in found.activations.values()]
    for codes in found.weights.values():
        scales += codes.scale.tolist()
    assert all(float(np.float16(scale)) == scale for scale in scales)
    for site in model.sited.sites:
        if site.role is not Role.WEIGHT:
            continue
        name = layer_name(model.sited.node(site.consumer))
        full, own = model.codes[name], found.weights[site.index]
        # rounded up by one FP16 step at most, so that no weight is clipped
        assert bool((own.scale >= full.scale).all())
        assert bool((own.scale <= full.scale * (1 + 2.0**-10)).all())


@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
def test_float_biases_are_corrected_by_the_mean_error(model: QuantizedModel, target: str) -> None:
    found = lowered(model, target)
    weight_site = site_index(model, "conv2d_1", Role.WEIGHT)
    error = found.weights[weight_site].dequantize() - parameter(model, "body.weight")
    mean = model.statistics.tensors["pad"].channel_mean
    expected = parameter(model, "body.bias") - torch.einsum("oikl,i->o", error, mean)
    got = found.biases[site_index(model, "conv2d_1", Role.BIAS)]
    assert torch.allclose(got, expected, atol=1e-6)
    assert found.bias_scales == {}


def test_integer_biases_are_multiples_of_the_accumulator_step(model: QuantizedModel) -> None:
    found = lowered(model, "onnxruntime")
    floats = lowered(model, "openvino")
    for consumer, source in (("conv2d", found.sited.sites[0].tensor), ("conv2d_1", "relu6")):
        bias = site_index(model, consumer, Role.BIAS)
        weight = site_index(model, consumer, Role.WEIGHT)
        # conv2d_1 reads a padded tensor, whose quantizer stands before the padding
        step = grid_of(found, source).scale * found.weights[weight].scale
        assert torch.allclose(found.bias_scales[bias], step)
        codes = found.biases[bias].double() / step.double()
        assert torch.allclose(codes, codes.round(), atol=1e-3)
        assert float(codes.abs().max()) < 2**31
        if torch.equal(found.weights[weight].codes, floats.weights[weight].codes):
            assert bool(((found.biases[bias] - floats.biases[bias]).abs() <= 0.51 * step).all())


def test_large_bias_of_a_tiny_weight_fits_into_int32(quantize_module: Quantize) -> None:
    module = nn.Conv2d(2, 3, 1)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([0.5, 0.0]).reshape(1, 2, 1, 1))
        module.weight[1] = 1e-9
        module.bias.copy_(torch.tensor([0.1, 50.0, 0.1]))  # type: ignore[union-attr]
    model = quantize_module(module, (2, 4, 4))
    found = lowered(model, "onnxruntime")
    (weight,) = found.weights.values()
    (index,) = found.biases
    codes = found.biases[index].double() / found.bias_scales[index].double()
    assert float(codes.abs().max()) < 2**31
    assert found.biases[index].tolist() == pytest.approx([0.1, 50.0, 0.1], rel=1e-2)
    (full,) = model.codes.values()
    for channel in (0, 2):  # the others keep their scale
        assert weight.scale[channel] == full.scale[channel]
    assert weight.scale[1] > full.scale[1]


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_saturation_is_repaired_on_avx2_only(model: QuantizedModel, target: str) -> None:
    stem = site_index(model, "conv2d", Role.WEIGHT)
    on_avx2, on_vnni = lowered(model, target), lowered(model, target, Cpu.VNNI)
    full = model.codes["stem"]
    assert torch.equal(on_vnni.weights[stem].codes, full.codes)
    assert on_vnni.at_risk["stem"] == (0, 8)
    risky, channels = on_avx2.at_risk["stem"]
    assert channels == 8
    assert 1 <= risky < 8
    assert torch.equal(on_avx2.weights[stem].codes[1], full.codes[1])
    # 27 equal weights: every pair of full-range codes sums to 254
    assert int(on_avx2.weights[stem].codes[0].abs().max()) <= 64


def test_layer_without_bias_gets_none(model: QuantizedModel) -> None:
    found = lowered(model, "openvino")
    biased = {found.sited.sites[index].consumer for index in found.biases}
    assert biased == {"conv2d", "conv2d_1", "conv_transpose2d"}
    assert site_index(model, "linear", Role.WEIGHT) in found.weights


def test_layer_in_float_has_neither_codes_nor_grids(model: QuantizedModel) -> None:
    found = lower(model, profile_of("openvino"), {"conv2d": "because"})
    assert site_index(model, "conv2d", Role.WEIGHT) not in found.weights
    assert site_index(model, "conv2d", Role.BIAS) not in found.biases
    assert site_index(model, "conv2d", Role.ACTIVATION) not in found.activations
    assert "stem" not in found.at_risk


def test_lowering_leaves_the_neutral_model_alone(model: QuantizedModel) -> None:
    before = {name: (c.codes.clone(), c.scale.clone()) for name, c in model.codes.items()}
    stored = {n: v.clone() for n, v in model.sited.model.graph.state_dict().items()}
    for target in TARGETS:
        lowered(model, target)
    for name, (codes, scale) in before.items():
        assert torch.equal(model.codes[name].codes, codes)
        assert torch.equal(model.codes[name].scale, scale)
    found = model.sited.model.graph.state_dict()
    assert all(torch.equal(found[name], value) for name, value in stored.items())


def test_shared_layer_is_lowered_for_each_call(quantize_module: Quantize) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(3 * F.relu(self.conv(x)))

    model = quantize_module(Shared(), (4, 8, 8))
    found = lowered(model, "onnxruntime")
    first, second = (site_index(model, name, Role.BIAS) for name in ("conv2d", "conv2d_1"))
    assert set(model.codes) == {"conv"}
    assert not torch.equal(found.bias_scales[first], found.bias_scales[second])
