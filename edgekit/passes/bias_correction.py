"""Bias correction from measured input means.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV
2019), section 4.2: E[y_q] - E[y] = (W_q - W) E[x], subtracted from the bias. We take E[x] from
the observed channel means instead of the closed form for rectified Gaussians.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from edgekit.graph import OpKind, argument, op_kind


def bias_shift(layer: fx.Node, error: Tensor, mean: Tensor) -> Tensor:
    """Return what must be added to the bias, ``[C_out]``.

    Args:
        layer: convolution, transposed convolution or linear node.
        error: dequantized weight minus float weight, in the weight's layout.
        mean: channel means of the layer's input, ``[C_in]``.
    """
    kind = op_kind(layer)
    if kind is OpKind.LINEAR:
        return -(error @ mean)
    groups = argument(layer, 6, "groups", 1)  # the same position in both schemas
    assert isinstance(groups, int)
    kernel = error.flatten(2).sum(2)
    if kind is OpKind.CONV:  # [C_out, C_in / groups]
        grouped = kernel.unflatten(0, (groups, -1))
        means = mean.unflatten(0, (groups, -1))
        return -torch.einsum("goi,gi->go", grouped, means).flatten()
    # transposed: [C_in, C_out / groups]; each output position meets kernel / stride weights
    stride = argument(layer, 3, "stride", 1)
    steps = stride if isinstance(stride, (list, tuple)) else [stride] * (error.dim() - 2)
    for step in steps:
        assert isinstance(step, int)
        kernel = kernel / step
    grouped = kernel.unflatten(0, (groups, -1))
    means = mean.unflatten(0, (groups, -1))
    return -torch.einsum("gio,gi->go", grouped, means).flatten()
