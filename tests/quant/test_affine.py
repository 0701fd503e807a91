"""Integer grids against hand-computed numbers, a plain loop and ONNX's own operators."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgekit.quant.affine import (
    SMALLEST_SCALE,
    QParams,
    fake_quantize,
    max_scale,
    qparams_from_range,
    quantize_weight,
    weight_scheme,
)
from edgekit.types import TensorScheme

U8 = TensorScheme(8, signed=False, symmetric=False)
U8_ZERO = TensorScheme(8, signed=False, symmetric=True)
S8 = TensorScheme(8, signed=True, symmetric=False)
S8_ZERO = TensorScheme(8, signed=True, symmetric=True)
WEIGHT = weight_scheme(8, 0)
SCHEMES = pytest.mark.parametrize("scheme", [U8, U8_ZERO, S8, S8_ZERO, WEIGHT], ids=str)

bound = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)
scheme = st.sampled_from([U8, U8_ZERO, S8, S8_ZERO, WEIGHT])


@pytest.mark.parametrize(
    ("given_scheme", "low", "high", "scale", "zero_point"),
    [
        (U8, -1.0, 4.1, 0.02, 50),  # 5.1 / 255; 1.0 / 0.02
        (U8, 1.0, 5.1, 0.02, 0),  # widened to hold zero
        (U8, -5.1, -1.0, 0.02, 255),
        (U8_ZERO, 0.0, 5.1, 0.02, 0),
        (S8, -1.0, 4.1, 0.02, -78),  # 50 - 128
        (S8_ZERO, -1.0, 2.54, 0.02, 0),  # 2.54 / 127
        (S8_ZERO, -2.54, 1.0, 0.02, 0),
        (WEIGHT, -2.54, 2.54, 0.02, 0),
    ],
)
def test_grid_of_a_range(
    given_scheme: TensorScheme, low: float, high: float, scale: float, zero_point: int
) -> None:
    grid = qparams_from_range(low, high, given_scheme)
    assert grid.scale == pytest.approx(scale, rel=1e-7)  # float32 has 24 bits
    assert grid.zero_point == zero_point


@given(bound, bound, scheme)
def test_every_grid_holds_zero_exactly_and_reaches_its_range(
    a: float, b: float, scheme: TensorScheme
) -> None:
    low, high = min(a, b), max(a, b)
    grid = qparams_from_range(low, high, scheme)
    assert grid.scale >= SMALLEST_SCALE
    assert scheme.quant_min <= grid.zero_point <= scheme.quant_max
    assert grid.minimum <= 0.0 <= grid.maximum
    assert float(fake_quantize(torch.zeros(1), grid)) == 0.0
    # an asymmetric zero point is rounded, which shifts both ends by at most half a step
    assert grid.maximum >= high - 0.5001 * grid.scale
    if scheme is not U8_ZERO:  # that one has no codes for negative values
        assert grid.minimum <= low + 0.5001 * grid.scale


@given(bound, bound, scheme, st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_round_trip_errs_by_half_a_step_at_most(
    a: float, b: float, scheme: TensorScheme, places: list[float]
) -> None:
    grid = qparams_from_range(min(a, b), max(a, b), scheme)
    inside = np.array([grid.minimum + p * (grid.maximum - grid.minimum) for p in places])
    x = torch.from_numpy(np.float32(inside))
    error = (fake_quantize(x, grid).double() - x.double()).abs().max()
    # x and the result are rounded to float32: 2**-23 of the largest of 256 steps is 3e-5 steps
    assert float(error) <= 0.5001 * grid.scale


@given(bound, bound, scheme)
def test_scale_is_the_number_that_the_file_holds(a: float, b: float, scheme: TensorScheme) -> None:
    scale = qparams_from_range(min(a, b), max(a, b), scheme).scale
    assert float(np.float32(scale)) == scale


def test_smallest_scale_is_an_fp16_number_and_guards_an_empty_range() -> None:
    assert float(np.float16(SMALLEST_SCALE)) == SMALLEST_SCALE
    assert float(np.float16(SMALLEST_SCALE / 2)) == 0.0  # and no smaller one is
    for candidate in (U8, U8_ZERO, S8, S8_ZERO):
        assert qparams_from_range(0.0, 0.0, candidate).scale == SMALLEST_SCALE


def _near_ties(grid: QParams, rng: np.random.Generator) -> np.ndarray:
    """Values on, just above and just below every rounding boundary, outside the range too."""
    halves = (np.arange(-300, 300, dtype=np.float32) + np.float32(0.5)) * np.float32(grid.scale)
    spread = rng.normal(size=400).astype(np.float32) * np.float32(100 * grid.scale)
    parts = [halves, np.nextafter(halves, np.float32(1e9)), np.nextafter(halves, np.float32(-1e9))]
    return np.concatenate([*parts, spread])


def _loop(x: np.ndarray, grid: QParams) -> list[float]:
    scale = np.float32(grid.scale)
    found = []
    for value in x:
        steps = float(value / scale)  # a float32 division, as in the ONNX operator
        below = math.floor(steps)
        part = steps - below
        up = part > 0.5 or (part == 0.5 and below % 2 == 1)  # half to even
        code = min(max(below + up + grid.zero_point, grid.scheme.quant_min), grid.scheme.quant_max)
        found.append(float(np.float32(code - grid.zero_point) * scale))
    return found


GRIDS = [
    QParams(scale=float(np.float32(s)), zero_point=z, scheme=scheme)
    for s in (0.25, 0.0213, 0.3, 1.7e-3)
    for z, scheme in ((0, U8_ZERO), (77, U8), (-128, S8), (3, S8), (0, S8_ZERO))
]


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g.scale:.4g},{g.zero_point}")
def test_fake_quantize_equals_a_plain_loop(grid: QParams) -> None:
    x = _near_ties(grid, np.random.default_rng(0))
    got = fake_quantize(torch.from_numpy(x), grid)
    assert got.tolist() == _loop(x, grid)  # bit for bit


def test_fake_quantize_equals_onnx_on_ties() -> None:
    ort = pytest.importorskip("onnxruntime", reason="the reference that executes ONNX")
    onnx = pytest.importorskip("onnx", reason="builds the reference graph")
    rng = np.random.default_rng(1)
    for grid in GRIDS:
        kind = "int8" if grid.scheme.signed else "uint8"
        graph = onnx.parser.parse_model(
            f'<ir_version: 9, opset_import: ["" : 20]> g (float[N] x, float s, {kind} z)'
            " => (float[N] y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
        )
        session = ort.InferenceSession(
            graph.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        x = _near_ties(grid, rng)
        feeds = {
            "x": x,
            "s": np.array(grid.scale, np.float32),
            "z": np.array(grid.zero_point, kind),
        }
        (expected,) = session.run(None, feeds)
        assert np.array_equal(fake_quantize(torch.from_numpy(x), grid).numpy(), expected), grid


@SCHEMES
def test_fake_quantize_clamps_at_the_ends_of_the_grid(scheme: TensorScheme) -> None:
    grid = qparams_from_range(-3.0 if scheme is not U8_ZERO else 0.0, 3.0, scheme)
    ends = fake_quantize(torch.tensor([-1e6, 1e6]), grid)
    assert ends.tolist() == pytest.approx([grid.minimum, grid.maximum], rel=1e-6)  # float32


def test_fake_quantize_leaves_its_input_alone() -> None:
    x = torch.tensor([0.3, -0.7])
    before = x.clone()
    fake_quantize(x, qparams_from_range(-1, 1, S8_ZERO))
    assert torch.equal(x, before)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("axis", [0, 1])
def test_weight_codes_reach_the_largest_code_of_each_channel(bits: int, axis: int) -> None:
    weight = torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    scale = max_scale(weight, axis, bits)
    codes = quantize_weight(weight, scale, axis, bits)
    top = 2 ** (bits - 1) - 1  # narrow: -top..top, so that a weight and its opposite have codes
    per_channel = codes.codes.movedim(axis, 0).flatten(1).abs().amax(1)
    assert per_channel.tolist() == [top] * weight.shape[axis]
    assert codes.codes.dtype == torch.int8
    steps = scale.reshape([-1 if a == axis else 1 for a in range(4)])
    # half a step, and float32's 2**-24 of up to 127 steps twice
    assert bool(((codes.dequantize() - weight).abs() <= steps * 0.50002).all())


def test_weight_codes_by_hand() -> None:
    weight = torch.tensor([[1.27, -0.632, 0.004], [0.0, 0.0, 0.0], [2.54, -2.54, 0.028]])
    scale = max_scale(weight, 0, 8)
    assert scale.tolist() == pytest.approx([0.01, SMALLEST_SCALE, 0.02], rel=1e-6)
    codes = quantize_weight(weight, scale, 0, 8).codes
    assert codes.tolist() == [[127, -63, 0], [0, 0, 0], [127, -127, 1]]


def test_weights_beyond_the_scale_are_clamped_to_the_narrow_range() -> None:
    codes = quantize_weight(torch.tensor([[9.0, -9.0]]), torch.tensor([0.01]), 0, 8).codes
    assert codes.tolist() == [[127, -127]]
