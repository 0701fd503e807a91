"""What each layer's narrow weights cost, in error at the outputs and in bytes, without data.

Errors of layers are taken to be independent, so what several do together is the sum of what each
does, as in HAWQ (Dong et al., ICCV 2019) and ZeroQ (Cai et al., CVPR 2020). These weigh a layer's
error by a curvature or measure it at the outputs; both need inputs that mean something. Here the
error is measured at the layer itself, with the codes that GPTQ gives it on the inputs that there
are, and carried to the outputs by variances alone (:mod:`edgekit.error_shares`). Twins of a network
(:mod:`edgekit.reference`) and real images agree on the first within 20 %.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edgekit.error_shares import channel_variance, output_shares
from edgekit.graph import WEIGHTED, constant, op_kind
from edgekit.lowering import LoweredModel
from edgekit.quant.affine import WeightCodes, max_scale, quantize_weight
from edgekit.quantized import QuantizedModel, lower
from edgekit.rounding.sequential import NEUTRAL, rounding_errors
from edgekit.sites import Role, layer_name
from edgekit.types import Task
from edgekit.work import work_of_layers

_POINTS = 6.5
"""Points of top-1 that a relative error of one at the logits costs; they grow with the error's
square root. Measured: ResNet-20 3, MobileNetV1 6 to 8."""


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What the precision of one layer costs.

    Attributes:
        name: the layer.
        wide: squared error at the outputs, relative to the outputs' variance, that 8-bit weights
            and the quantized activations that the layer reads make.
        narrow: what narrow weights add to that; ``None`` where the layer may not be narrow.
        values: number of weights.
        work: multiply-accumulates of one sample.
    """

    name: str
    wide: float
    narrow: float | None
    values: int
    work: int


@dataclass(frozen=True)
class Sensitivity:
    """Costs of all weighted layers, and the error that activations read by others make."""

    layers: tuple[LayerCost, ...]
    rest: float

    @property
    def base(self) -> float:
        """Error of the network with 8 bits everywhere."""
        return self.rest + sum(layer.wide for layer in self.layers)


def measure_sensitivity(
    narrow: QuantizedModel, on_layer: Callable[[int], None] = lambda _done: None
) -> Sensitivity:
    """Measure every weighted layer.

    Args:
        narrow: the network with nearest codes, narrow in all layers that may be.
        on_layer: called with the number of layers measured so far.
    """
    shares = output_shares(narrow.sited, narrow.statistics)
    measured: Mapping[str, float] = {}
    if narrow.reference is not None:
        measured = rounding_errors(narrow, narrow.reference, on_layer)
    lowered = lower(narrow, NEUTRAL, {})
    read, rest = _activation_errors(narrow, lowered, shares)
    work = work_of_layers(narrow.sited.model.graph)
    costs: dict[str, LayerCost] = {}
    for site in narrow.sited.sites:
        node = narrow.sited.node(site.consumer)
        if site.role is not Role.WEIGHT or op_kind(node) not in WEIGHTED:
            continue
        name = layer_name(node)
        codes = narrow.codes[name]
        weight = constant(narrow.sited.model.graph, narrow.sited.node(site.tensor))
        assert weight is not None
        share = shares.get(site.consumer, 1.0)
        eight = quantize_weight(weight, max_scale(weight, codes.axis, 8), codes.axis, 8)
        wide = share * _weight_error(eight, weight) + read.get(site.consumer, 0.0)
        added = None
        if codes.bits < 8:  # what GPTQ does not round is judged by its weights
            added = share * measured.get(name, _weight_error(codes, weight))
        if name in costs:  # a layer that is called again
            before = costs[name]
            wide += before.wide
            added = None if added is None or before.narrow is None else added + before.narrow
        costs[name] = LayerCost(name, wide, added, weight.numel(), work.get(name, 0))
    return Sensitivity(tuple(costs.values()), rest)


def _activation_errors(
    model: QuantizedModel, lowered: LoweredModel, shares: Mapping[str, float]
) -> tuple[dict[str, float], float]:
    """Return the error of the activations that each weighted node reads, and of all others."""
    read: dict[str, float] = {}
    rest = 0.0
    for index, grid in lowered.activations.items():
        site = model.sited.sites[index]
        spread = channel_variance(model.statistics.tensors[lowered.placement.tensors[site.tensor]])
        error = grid.scale**2 / 12 / max(spread, 1e-12) * shares.get(site.consumer, 1.0)
        if op_kind(model.sited.node(site.consumer)) in WEIGHTED:
            read[site.consumer] = read.get(site.consumer, 0.0) + error
        else:
            rest += error
    return read, rest


def _weight_error(codes: WeightCodes, weight: Tensor) -> float:
    """Return the squared error of a weight in shares of its square."""
    with torch.no_grad():
        error = (codes.dequantize() - weight).square().sum() / weight.square().sum().clamp_min(
            1e-12
        )
    return float(error)


def expected_drop(task: Task, error: float) -> float:
    """Return the points of accuracy that a relative squared error of the outputs costs.

    For classifiers and rankings these are top-1 points, by a rule that may be wrong by a factor of
    two; for embeddings the loss of cosine, else of relative closeness, in percent
    (:func:`edgekit.fidelity.sample_agreement`).
    """
    if task in (Task.CLASSIFICATION, Task.RANKING):
        return float(_POINTS * error**0.5)
    return 50.0 * error if task is Task.EMBEDDING else float(100.0 * error**0.5)
