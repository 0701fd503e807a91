"""GPTQ: weights are rounded one input at a time, and the rest makes up for the error so far.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"
(2023), after Hassibi et al., "Optimal Brain Surgeon" (1993): with H the second moment of a layer's
inputs and U the upper Cholesky factor of its inverse, rounding input j changes the inputs behind
it by -(w_j - q_j) U[j, j+1:] / U[j, j].
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgekit.quant.affine import weight_scheme

DAMPING = 0.01
"""Share of the mean diagonal that is added to it. Between 0.003 and 0.1 ResNet-20 showed no
difference beyond noise."""
_BLOCK = 128  # columns whose updates to the rest are done as one product


def gptq(
    weight: Tensor, moment: Tensor, steps: Tensor, bits: int, damping: float = DAMPING
) -> Tensor:
    """Return integer codes ``[O, K]`` (float32) that keep a layer's output.

    Args:
        weight: ``[O, K]``.
        moment: second moment of the inputs, ``[K, K]``.
        steps: scale of each weight, broadcastable to ``[O, K]``.
        bits: width of the codes.
        damping: share of the moment's mean diagonal that is added to it.
    """
    scheme = weight_scheme(bits, 0)
    order = torch.argsort(moment.diagonal(), descending=True)  # what carries most first
    upper = _inverse_factor(moment[order][:, order], damping)
    rest, steps = weight[:, order].clone(), steps.expand_as(weight)[:, order]
    codes = torch.empty_like(rest)
    width = rest.shape[1]
    for start in range(0, width, _BLOCK):
        stop = min(start + _BLOCK, width)
        block, errors = rest[:, start:stop], torch.empty(len(rest), stop - start)
        inner = upper[start:stop, start:stop]
        for j in range(stop - start):
            column, step = block[:, j : j + 1], steps[:, start + j : start + j + 1]
            code = (column / step).round_().clamp_(scheme.quant_min, scheme.quant_max)
            error = (column - code * step) / inner[j, j]
            codes[:, start + j : start + j + 1], errors[:, j : j + 1] = code, error
            block[:, j + 1 :] -= error * inner[j, j + 1 :]
        rest[:, stop:] -= errors @ upper[start:stop, stop:]
    return codes[:, torch.argsort(order)]


def _inverse_factor(moment: Tensor, damping: float) -> Tensor:
    """Return the upper Cholesky factor of the damped moment's inverse."""
    damped = moment.double()
    damped.diagonal().add_(damping * damped.diagonal().mean().clamp_min(1e-12))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor.float()


def best_scale(weight: Tensor, moment: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """Return the scale ``[O]`` with which given codes keep the layer's output best.

    For one row, ``(w - s q) H (w - s q)^T`` is least at ``s = w H q^T / q H q^T``. FP16 numbers,
    and never far from the scale that the codes were made for.

    Args:
        weight: ``[O, K]``.
        moment: ``[K, K]``.
        codes: ``[O, K]``.
        scale: what the codes were made for, ``[O]``.
    """
    driven = codes @ moment
    found = (weight * driven).sum(1) / (codes * driven).sum(1).clamp_min(1e-12)
    plausible = (found > 0.7 * scale) & (found < 1.3 * scale)
    return torch.where(plausible, found, scale).half().float()
