"""Choice of activation ranges by minimal squared error.

The rounding and clipping error is evaluated on a histogram of sampled values for a grid of
clipping points, as in the "MSE" observers of the field (Banner et al., NeurIPS 2019, give the
closed form for known densities; we take the measured density).
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgekit.quant.affine import QParams, qparams_from_range
from edgekit.types import TensorScheme

_BINS = 8192  # 32 bins to one step of an 8-bit grid: bin width does not decide
_FRACTIONS = tuple(0.2 + 0.0125 * step for step in range(65))


def mse_qparams(
    values: Tensor,
    low: float,
    high: float,
    scheme: TensorScheme,
    *,
    margin: float = 1.0,
) -> QParams:
    """Return the grid within ``[low, high]`` with the least squared error, plus a margin.

    Args:
        values: flat sample of the tensor, float32.
        low: smallest value that must be considered (observed minimum within the prior).
        high: largest one.
        scheme: the integer grid.
        margin: factor that the range found is widened by, within ``[low, high]``.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 0:
        return qparams_from_range(low, high, scheme)
    limits = low, high
    width = (high - low) / _BINS
    index = ((values - low) / width).long().clamp_(0, _BINS - 1)
    counts = torch.bincount(index, minlength=_BINS).float()
    centres = low + width * (torch.arange(_BINS) + 0.5)
    low, high = _best([(low * f, high * f) for f in _FRACTIONS], counts, centres, scheme)
    if low < 0 < high and not scheme.symmetric:
        low, high = _best([(low, high * f) for f in _FRACTIONS], counts, centres, scheme)
        low, high = _best([(low * f, high) for f in _FRACTIONS], counts, centres, scheme)
    return qparams_from_range(max(low * margin, limits[0]), min(high * margin, limits[1]), scheme)


def _best(
    candidates: list[tuple[float, float]], counts: Tensor, centres: Tensor, scheme: TensorScheme
) -> tuple[float, float]:
    """Return the candidate range with the least squared error over the histogram."""
    grids = [qparams_from_range(low, high, scheme) for low, high in candidates]
    scale = torch.tensor([grid.scale for grid in grids])[:, None]
    zero = torch.tensor([float(grid.zero_point) for grid in grids])[:, None]
    codes = (torch.round(centres / scale) + zero).clamp_(scheme.quant_min, scheme.quant_max)
    error = codes.sub_(zero).mul_(scale).sub_(centres).square_() @ counts
    return candidates[int(error.argmin())]
