"""The simulation against integer arithmetic written out: codes, int64 sums, one rescaling."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.lowering import LoweredModel
from edgekit.quant.affine import QParams
from edgekit.quantized import QuantizedModel, lower
from edgekit.registry import TARGETS, resolve
from edgekit.simulate import code_names, simulate
from edgekit.sites import Role
from edgekit.types import Cpu

Quantize = Callable[..., QuantizedModel]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.second = nn.Conv2d(8, 8, 3, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))


@pytest.fixture(scope="module")
def model(quantize_module: Quantize) -> QuantizedModel:
    torch.manual_seed(0)
    return quantize_module(Network(), (3, 12, 12))


def lowered(model: QuantizedModel, target: str) -> LoweredModel:
    exporter = resolve(TARGETS, target, "target")()
    found: LoweredModel = lower(
        model, exporter.profile(Cpu.AVX2), exporter.unsupported(model.sited)
    )
    return found


def to_codes(x: np.ndarray, grid: QParams) -> np.ndarray:
    """Codes minus zero point; QuantizeLinear divides in float32."""
    scheme = grid.scheme
    codes = np.round(x.astype(np.float32) / np.float32(grid.scale)) + grid.zero_point
    codes = np.clip(codes, scheme.quant_min, scheme.quant_max) - grid.zero_point
    found: np.ndarray = codes.astype(np.int64)
    return found


def integer_layer(found: LoweredModel, layer: str, x: np.ndarray, **geometry: int) -> np.ndarray:
    """One convolution on integers: float in, float out."""
    by_role = {s.role: s.index for s in found.sited.sites if s.consumer == layer}
    grid = found.activations[by_role[Role.ACTIVATION]]
    codes = found.weights[by_role[Role.WEIGHT]]
    sums = F.conv2d(
        torch.from_numpy(to_codes(x, grid)), codes.codes.long(), **geometry
    )  # torch convolves int64 exactly
    step = grid.scale * codes.scale.double()
    total = sums.double() * step.reshape(1, -1, 1, 1)
    result: np.ndarray = (
        total + found.biases[by_role[Role.BIAS]].double().reshape(1, -1, 1, 1)
    ).numpy()
    return result


@pytest.mark.parametrize("target", TARGETS)
def test_simulation_equals_integer_arithmetic(model: QuantizedModel, target: str) -> None:
    found = lowered(model, target)
    x = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    hidden = integer_layer(found, "conv2d", x.numpy(), stride=2, padding=1)
    if "relu" not in found.placement.absorbed:
        hidden = np.maximum(hidden, 0)
    expected = integer_layer(found, "conv2d_1", hidden, groups=2)
    outputs = [s for s in found.sited.sites if s.role is Role.OUTPUT]
    grid = found.activations.get(outputs[0].index)
    if grid is not None:
        expected = to_codes(expected, grid) * grid.scale
    got = simulate(found, x)[0].numpy()
    # Float32 sums of up to 36 products: 1e-6 of the largest. Where a sum lands on the edge of two
    # codes, that decides the next code: one step of the hidden or the last grid, for a few values.
    close = np.abs(got - expected) <= 1e-5 * np.abs(expected).max()
    assert close.mean() > 0.98
    second = {s.role: s.index for s in found.sited.sites if s.consumer == "conv2d_1"}
    largest = float(found.weights[second[Role.WEIGHT]].dequantize().abs().max())
    one_code = found.activations[second[Role.ACTIVATION]].scale * largest
    step = 0.0 if grid is None else grid.scale
    assert np.abs(got - expected).max() <= 2 * max(one_code, step)


def test_float_decisions_leave_the_network_as_it_was(model: QuantizedModel) -> None:
    exporter = resolve(TARGETS, "openvino", "target")()
    reasons = {"conv2d": "float", "conv2d_1": "float"}
    found = lower(model, exporter.profile(Cpu.AVX2), reasons)
    x = torch.randn(2, 3, 12, 12)
    assert torch.equal(simulate(found, x)[0], model.sited.model(x)[0])


def test_absorbed_clamp_is_the_range_of_its_grid(model: QuantizedModel) -> None:
    found = lowered(model, "onnxruntime")
    assert found.placement.absorbed == {"relu"}
    x = torch.randn(2, 3, 12, 12)
    graph = found.sited.model.graph
    relu = found.sited.node("relu")
    with_clamp = simulate(found, x)[0]
    try:  # the exporter removes the clamp: the grid behind it must do its work
        relu.target = torch.ops.aten.alias.default
        assert torch.equal(simulate(found, x)[0], with_clamp)
    finally:
        relu.target = torch.ops.aten.relu.default
    assert graph is found.sited.model.graph


def test_simulation_repeats_and_leaves_inputs_alone(model: QuantizedModel) -> None:
    found = lowered(model, "tensorrt")
    x = torch.randn(2, 3, 12, 12)
    kept = x.clone()
    assert torch.equal(simulate(found, x)[0], simulate(found, x)[0])
    assert torch.equal(x, kept)
    assert not simulate(found, x)[0].requires_grad


@pytest.mark.parametrize("target", TARGETS)
def test_quantization_is_close_to_the_float_network(model: QuantizedModel, target: str) -> None:
    x = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    exact, got = model.sited.model(x)[0], simulate(lowered(model, target), x)[0]
    noise = float((got - exact).norm() / exact.norm())
    # Three roundings to 256 steps of about 8 spreads: 1 % each, and half-range weights another 1 %;
    # clipping of the tails of Gaussian inputs adds as much
    assert 0.001 < noise < 0.05


def test_code_names_are_flat(model: QuantizedModel) -> None:
    flat = code_names(model.codes)
    assert set(flat) == {"first.codes", "first.scale", "second.codes", "second.scale"}
    assert flat["first.codes"].dtype == torch.int8
    assert flat["first.codes"].shape == (8, 3, 3, 3)
    assert flat["second.scale"].shape == (8,)
    assert all(tensor.is_contiguous() for tensor in flat.values())
