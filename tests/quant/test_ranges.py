"""The range search against brute force over the sampled values themselves."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from edgekit.quant.affine import QParams, qparams_from_range
from edgekit.quant.ranges import mse_qparams
from edgekit.types import TensorScheme

U8 = TensorScheme(8, signed=False, symmetric=False)
U8_ZERO = TensorScheme(8, signed=False, symmetric=True)
S8_ZERO = TensorScheme(8, signed=True, symmetric=True)


def squared_error(x: np.ndarray, grid: QParams) -> float:
    scheme = grid.scheme
    codes = np.clip(np.round(x / grid.scale) + grid.zero_point, scheme.quant_min, scheme.quant_max)
    return float((((codes - grid.zero_point) * grid.scale - x) ** 2).sum())


def brute_force(x: np.ndarray, scheme: TensorScheme) -> float:
    """Least error over all pairs of clipping points on a fine grid."""
    fractions = np.linspace(0.1, 1.0, 31)
    low, high = min(x.min(), 0.0), max(x.max(), 0.0)
    return min(
        squared_error(x, qparams_from_range(low * a, high * b, scheme))
        for a, b in product(fractions if low < 0 else [1.0], fractions if high > 0 else [1.0])
    )


def sample(kind: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = {
        "normal": rng.normal(size=1500),
        "outliers": np.concatenate([rng.normal(size=1500), [11.0, -7.0]]),
        "heavy tail": rng.laplace(size=1500),
        "rectified": np.maximum(rng.normal(size=1500), 0.0),
        "skewed": rng.gamma(2.0, size=1500) - 0.7,
        "uniform": rng.uniform(-1, 3, size=1500),
        "negative": -np.abs(rng.normal(size=1500)),
    }[kind]
    return x.astype(np.float32).astype(np.float64)


KINDS = ["normal", "outliers", "heavy tail", "rectified", "skewed", "uniform", "negative"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_error_is_within_a_tenth_of_brute_force(kind: str, bits: int, symmetric: bool) -> None:
    x = sample(kind)
    scheme = TensorScheme(bits, signed=symmetric, symmetric=symmetric)
    grid = mse_qparams(torch.from_numpy(x).float(), float(x.min()), float(x.max()), scheme)
    # both ends are searched in turn and in steps of 1.25 % of the range, brute force jointly and in
    # steps of 3 %: neither hits the optimum exactly, and near it the error is flat
    assert squared_error(x, grid) <= 1.1 * brute_force(x, scheme)


def test_outliers_are_clipped_and_a_full_range_is_kept() -> None:
    scheme = TensorScheme(4, signed=False, symmetric=True)
    bulk = torch.randn(20000, generator=torch.Generator().manual_seed(0)).abs()
    spiky = torch.cat([bulk, torch.tensor([20.0])])
    # covering the one outlier costs 20000 (20 / 15)**2 / 12 = 2963, clipping it to 10 only 100
    assert mse_qparams(spiky, 0.0, 20.0, scheme).maximum < 10.0
    flat = torch.linspace(0, 20, 20000)
    # a uniform density loses half a step by clipping half a step: the end stays within one
    grid = mse_qparams(flat, 0.0, 20.0, scheme)
    assert grid.maximum >= 20.0 - grid.scale


@pytest.mark.parametrize("scheme", [U8, S8_ZERO], ids=["asymmetric", "symmetric"])
def test_margin_widens_the_range_up_to_the_limits(scheme: TensorScheme) -> None:
    x = torch.from_numpy(sample("outliers")).float()
    low, high = float(x.min()), float(x.max())
    tight = mse_qparams(x, low, high, scheme)
    wide = mse_qparams(x, low, high, scheme, margin=1.25)
    # an asymmetric zero point is rounded: half a step at either end
    slack = wide.scale / 2 + tight.scale / 2
    assert wide.maximum == pytest.approx(min(tight.maximum * 1.25, high), abs=slack)
    assert mse_qparams(x, low, high, scheme, margin=1e6) == qparams_from_range(low, high, scheme)


@pytest.mark.parametrize("kind", KINDS)
def test_range_never_leaves_the_limits(kind: str) -> None:
    x = torch.from_numpy(sample(kind)).float()
    low, high = -0.5, 2.0  # a prior narrower than the data
    grid = mse_qparams(x, low, high, U8)
    assert grid.minimum >= low - grid.scale / 2
    assert grid.maximum <= high + grid.scale / 2


@pytest.mark.parametrize("scheme", [U8, U8_ZERO, S8_ZERO], ids=["u8", "u8 zero", "s8 zero"])
def test_constant_zero_has_a_grid(scheme: TensorScheme) -> None:
    assert mse_qparams(torch.zeros(10), 0.0, 0.0, scheme) == qparams_from_range(0, 0, scheme)


@pytest.mark.parametrize("value", [3.0, -3.0])
def test_constant_is_represented(value: float) -> None:
    scheme = TensorScheme(8, signed=True, symmetric=False)
    grid = mse_qparams(torch.full((10,), value), value, value, scheme)
    assert squared_error(np.array([value]), grid) <= (grid.scale / 2) ** 2 * 1.0001
