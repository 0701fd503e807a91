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

from edgekit.graph import WEIGHTED, OpKind, clamp_bounds, op_kind
from edgekit.lowering import LoweredModel
from edgekit.quant.affine import fake_quantize
from edgekit.sites import SITE, Role, Site
from edgekit.synthetic import SyntheticSet

_LARGEST = 1 << 25  # values of the largest tensor: an eighth GiB, and as much for the float half


def with_measured_bias(lowered: LoweredModel, made: SyntheticSet) -> LoweredModel:
    """Return the lowered model with biases that make the mean of each channel that of float.

    All samples pass at once, so as many are used as keep the largest tensor small. Where the batch
    is fixed nothing can be measured in one pass, and the model is returned as it is.

    Args:
        lowered: the model with its decisions, on the CPU.
        made: inputs to measure on.
    """
    model = lowered.sited.model
    if not model.batch:
        return lowered
    inputs = next(made.batches(_affordable(model.graph, len(made))))
    with torch.no_grad():
        correcting = _Correcting(lowered)
        correcting.run(*(torch.cat([value, value]) for value in inputs))
    return replace(lowered, biases=correcting.biases)


class _Correcting(fx.Interpreter):
    """Runs the float network on the first half of a batch and the quantized one on the second."""

    def __init__(self, lowered: LoweredModel) -> None:
        super().__init__(lowered.sited.model.graph)
        self.biases = dict(lowered.biases)
        self._lowered = lowered
        self._sites: dict[str, dict[Role, Site]] = {}
        for site in lowered.sited.sites:
            self._sites.setdefault(site.consumer, {})[site.role] = site

    def run_node(self, n: fx.Node) -> object:
        if n.target is SITE:
            return self._site(n)
        weight = self._sites.get(n.name, {}).get(Role.WEIGHT)
        if op_kind(n) in WEIGHTED and weight is not None and weight.index in self._lowered.weights:
            return self._layer(n, weight)
        return super().run_node(n)

    def _site(self, n: fx.Node) -> object:
        (x, index), _ = self.fetch_args_kwargs_from_env(n)
        assert isinstance(x, Tensor) and isinstance(index, int)
        grid = self._lowered.activations.get(index)
        if grid is None:
            return x
        plain, quantized = x.chunk(2)
        return torch.cat([plain, fake_quantize(quantized, grid)])

    def _layer(self, n: fx.Node, weight: Site) -> Tensor:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        plain, quantized = args[0].chunk(2)
        codes = self._lowered.weights[weight.index].dequantize()
        site = self._sites[n.name].get(Role.BIAS)
        target = n.target
        wanted = self.call_function(target, (plain, *args[1:]), kwargs)
        corrected = site is not None and site.index in self.biases
        bias = self.biases[site.index] if site is not None and corrected else None
        given = (
            (quantized, codes, args[2] if bias is None else bias)
            if len(args) > 2
            else (quantized, codes)
        )
        found = self.call_function(target, (*given, *args[3:]), kwargs)
        assert isinstance(wanted, Tensor) and isinstance(found, Tensor)
        if bias is None or site is None:
            return torch.cat([wanted, found])
        better = self._rounded(site.index, bias, _mean_error(n, wanted, found))
        self.biases[site.index] = better
        shift = better - bias
        shape = [1] * found.dim()
        shape[_channel_axis(n, found)] = -1
        return torch.cat([wanted, found + shift.reshape(shape)])

    def _rounded(self, index: int, bias: Tensor, error: Tensor) -> Tensor:
        step = self._lowered.bias_scales.get(index)
        return bias + error if step is None else torch.round((bias + error) / step) * step


def _mean_error(layer: fx.Node, wanted: Tensor, found: Tensor) -> Tensor:
    """Return the mean of float minus quantized over what counts, ``[C]``.

    Divided by one sample's positions more than there are: few active positions say little.
    """
    axis = _channel_axis(layer, wanted)
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


def _channel_axis(layer: fx.Node, value: Tensor) -> int:
    return value.dim() - 1 if op_kind(layer) is OpKind.LINEAR else 1


def _affordable(graph: fx.GraphModule, samples: int) -> int:
    largest = max(
        (
            node.meta["val"][0].numel()
            for node in graph.graph.nodes
            if isinstance(node.meta.get("val"), Tensor) and node.meta["val"].dim() > 1
        ),
        default=1,
    )
    return max(min(samples, _LARGEST // max(int(largest), 1)), 1)
