"""Affine quantization: scale, zero point, and the map between reals and integer codes.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference" (CVPR 2018), equation (1): r = S (q - Z).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgekit.types import PerAxis, TensorScheme

SMALLEST_SCALE = 2.0**-24
"""Smallest step in use: the smallest FP16 number, so that every scale has an FP16 form."""


@dataclass(frozen=True, slots=True)
class QParams:
    """Scale and zero point of one activation tensor (per-tensor, scalars)."""

    scale: float
    zero_point: int
    scheme: TensorScheme

    @property
    def minimum(self) -> float:
        """Smallest representable value."""
        return (self.scheme.quant_min - self.zero_point) * self.scale

    @property
    def maximum(self) -> float:
        """Largest representable value."""
        return (self.scheme.quant_max - self.zero_point) * self.scale


@dataclass(frozen=True)
class WeightCodes:
    """Integer codes ``int8`` in the weight's own layout, and ``scale`` ``[C]`` along ``axis``.

    ``bits`` is the width of the grid; the codes of a narrow one lie within it. With ``block`` the
    codes are a matrix ``[C, K]``, and ``scale`` ``[C, K / block]`` has an entry for each block.
    """

    codes: Tensor
    scale: Tensor
    axis: int
    bits: int = 8
    block: int | None = None

    def dequantize(self) -> Tensor:
        """Return the weight that the codes stand for, float32."""
        if self.block is not None:
            return self.codes.float() * self.scale.repeat_interleave(self.block, 1)
        return self.codes.float() * broadcast(self.scale, self.axis, self.codes.dim())


def broadcast(scale: Tensor, axis: int, dims: int) -> Tensor:
    """Reshape a ``[C]`` scale so that it multiplies along ``axis`` of a tensor of rank ``dims``."""
    shape = [1] * dims
    shape[axis] = -1
    return scale.reshape(shape)


def qparams_from_range(low: float, high: float, scheme: TensorScheme) -> QParams:
    """Return the grid that covers ``[low, high]``, widened to hold zero exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    if scheme.symmetric and scheme.signed:
        scale = max(-low, high) / scheme.quant_max
        return QParams(_as_float32(max(scale, SMALLEST_SCALE)), 0, scheme)
    if scheme.symmetric:  # unsigned and symmetric: zero point fixed at the lowest code
        return QParams(_as_float32(max(high / scheme.quant_max, SMALLEST_SCALE)), 0, scheme)
    levels = scheme.quant_max - scheme.quant_min
    scale = max((high - low) / levels, SMALLEST_SCALE)
    zero_point = round(scheme.quant_min - low / scale)
    zero_point = min(max(zero_point, scheme.quant_min), scheme.quant_max)
    return QParams(_as_float32(scale), zero_point, scheme)


def _as_float32(value: float) -> float:
    """Return the float32 number that the exported file will hold."""
    return float(torch.tensor(value, dtype=torch.float32))


def fake_quantize(x: Tensor, qparams: QParams) -> Tensor:
    """Quantize and dequantize: round half to even, as every runtime here does.

    Not torch's own operator: it multiplies by the reciprocal of the scale, where QuantizeLinear
    divides, and so breaks near-ties another way.
    """
    scheme, zero = qparams.scheme, qparams.zero_point
    codes = torch.div(x, qparams.scale).round_()
    return codes.clamp_(scheme.quant_min - zero, scheme.quant_max - zero).mul_(qparams.scale)


def weight_scheme(bits: int, axis: int) -> TensorScheme:
    """Return the symmetric, signed, per-channel grid of weights.

    At 8 bits the lowest code is left out, as runtimes expect; at 4 it is a sixteenth of the grid.
    """
    narrow = bits == 8
    return TensorScheme(bits, signed=True, symmetric=True, narrow=narrow, granularity=PerAxis(axis))


def quantize_weight(weight: Tensor, scale: Tensor, axis: int, bits: int) -> WeightCodes:
    """Round a weight to the nearest code of a given per-channel scale."""
    scheme = weight_scheme(bits, axis)
    codes = torch.round(weight / broadcast(scale, axis, weight.dim()))
    codes = codes.clamp(scheme.quant_min, scheme.quant_max).to(torch.int8)
    return WeightCodes(codes, scale, axis, bits)


def max_scale(weight: Tensor, axis: int, bits: int) -> Tensor:
    """Return the per-channel scale ``[C]`` that maps the largest magnitude to the largest code."""
    peak = weight.abs().movedim(axis, 0).flatten(1).amax(1)
    return (peak / weight_scheme(bits, axis).quant_max).clamp_min(SMALLEST_SCALE)
