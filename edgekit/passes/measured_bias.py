"""Bias correction measured on the quantized network itself.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV
2019), appendix D: the mean of each output channel, quantized minus float, is subtracted from the
bias, layer by layer, so that each layer sees inputs that are corrected already. Unlike the
correction from weight errors alone (``bias_correction``) this one also takes in what clipping and
rounding of activations do on average. It needs inputs that mean something to the network.

Where a clamp follows, only positions count whose value the clamp lets through: errors in what it
cuts off reach nobody, but correcting their mean would shift everything else. (Without this, the
mean of every layer of EfficientNet-Lite0 was corrected and its logit KL rose fivefold.)
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, fx

from edgekit.graph import OpKind, clamp_bounds, op_kind
from edgekit.lowering import LoweredModel
from edgekit.paired import Paired
from edgekit.reference import Reference, along, channel_axis
from edgekit.sites import SITE, Site


def with_measured_bias(lowered: LoweredModel, reference: Reference) -> LoweredModel:
    """Return the lowered model with biases that make the mean of each channel that of float.

    Args:
        lowered: the model with its decisions, on the CPU.
        reference: what to measure on.
    """
    correcting = _Correcting(lowered, reference)
    correcting.run_pairs()
    return replace(lowered, biases=correcting.biases)


class _Correcting(Paired):
    def layer(
        self, n: fx.Node, site: Site, plain: Tensor, quantized: Tensor, wanted: Tensor
    ) -> Tensor:
        del plain
        return corrected_output(self, n, site, quantized, wanted)


def corrected_output(
    run: Paired, n: fx.Node, site: Site, quantized: Tensor, wanted: Tensor
) -> Tensor:
    """Correct the bias of one layer of a paired run, and return its output with that bias."""
    found = run.quantized_output(n, site, quantized)
    bias_site = run.bias_site(n)
    if bias_site is None:
        return found
    bias = run.biases[bias_site.index]
    better = bias + run.from_reference(n, _mean_error(n, wanted, found))
    step = run.lowered.bias_scales.get(bias_site.index)
    if step is not None:
        better = torch.round(better / step) * step
    run.biases[bias_site.index] = better
    return found + along(run.to_reference(n, better - bias), channel_axis(n, found), found)


def _mean_error(layer: fx.Node, wanted: Tensor, found: Tensor) -> Tensor:
    """Return the mean of float minus quantized over what counts, ``[C]``.

    Divided by one sample's positions more than there are: few active positions say little.
    """
    axis = channel_axis(layer, wanted)
    others = [other for other in range(wanted.dim()) if other != axis]
    error = wanted - found
    positions = wanted.numel() / wanted.shape[axis] / wanted.shape[0]
    bounds = _clamp_behind(layer)
    if bounds is None:
        return error.sum(others) / (positions * (wanted.shape[0] + 1))
    low, high = bounds
    active = torch.ones_like(wanted, dtype=torch.bool)
    if low is not None:
        active &= wanted > low
    if high is not None:
        active &= wanted < high
    return (error * active).sum(others) / (active.sum(others) + positions)


def _clamp_behind(layer: fx.Node) -> tuple[float | None, float | None] | None:
    readers: list[fx.Node] = []
    for user in layer.users:
        readers.extend(user.users if user.target is SITE else [user])
    if len(readers) != 1 or op_kind(readers[0]) is not OpKind.CLAMP_ZERO:
        return None
    return clamp_bounds(readers[0])
