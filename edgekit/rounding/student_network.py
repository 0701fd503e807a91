"""The student: the quantized network with weights, steps and biases that are trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from edgekit.graph import WEIGHTED, constant, op_kind
from edgekit.lowering import LoweredModel
from edgekit.quant.affine import SMALLEST_SCALE, WeightCodes, broadcast, weight_scheme
from edgekit.reference import Reference
from edgekit.rounding.quantized_pass import Edge, QuantizedPass, narrow_factors, scaled_ranges
from edgekit.rounding.student_ops import round_weight
from edgekit.sites import Role, layer_name

_WITHIN = 0.4
"""How far from its code a weight begins at most, in steps: the student begins as what it got."""


@dataclass
class TrainedWeight:
    """A float weight and its steps; ``place`` is the weight in units of the steps at the start."""

    start: WeightCodes
    place: Tensor
    growth: Tensor

    @classmethod
    def of(cls, weight: Tensor, start: WeightCodes) -> TrainedWeight:
        """Begin as near to the float weight as the codes that are given allow."""
        scaled = weight / broadcast(start.scale, start.axis, weight.dim())
        codes = start.codes.float()
        place = torch.minimum(torch.maximum(scaled, codes - _WITHIN), codes + _WITHIN)
        return cls(start, place.requires_grad_(), torch.zeros_like(start.scale).requires_grad_())

    def value(self) -> Tensor:
        """Return the rounded weight."""
        start = self.start
        return round_weight(self.place, self.growth, start.scale, start.axis, start.bits)

    def codes(self) -> WeightCodes:
        """Return the codes, with steps as FP16 numbers."""
        start, scheme = self.start, weight_scheme(self.start.bits, self.start.axis)
        factor = self.growth.detach().exp()
        codes = (self.place.detach() / broadcast(factor, start.axis, self.place.dim())).round()
        codes = codes.clamp(scheme.quant_min, scheme.quant_max).to(torch.int8)
        scale = (start.scale * factor).half().float().clamp_min(SMALLEST_SCALE)
        return replace(start, codes=codes, scale=scale)


@dataclass(frozen=True)
class Trained:
    """All that is trained: weights and biases by layer, factors on the steps of activations."""

    weights: Mapping[str, TrainedWeight]
    biases: Mapping[str, Tensor]
    factors: Mapping[Edge, Tensor]

    @classmethod
    def of(cls, lowered: LoweredModel) -> Trained:
        """Begin at a lowered model: narrow weights and activations, and every bias."""
        weights: dict[str, TrainedWeight] = {}
        biases: dict[str, Tensor] = {}
        graph = lowered.sited.model.graph
        for site in lowered.sited.sites:
            layer = lowered.sited.node(site.consumer)
            if op_kind(layer) not in WEIGHTED:
                continue
            name = layer_name(layer)
            if site.role is Role.BIAS and site.index in lowered.biases and name not in biases:
                biases[name] = lowered.biases[site.index].detach().clone().requires_grad_()
            codes = lowered.weights.get(site.index)
            if site.role is not Role.WEIGHT or codes is None or name in weights:
                continue
            if codes.bits < 8 and codes.block is None:
                weight = constant(graph, lowered.sited.node(site.tensor))
                assert weight is not None
                weights[name] = TrainedWeight.of(weight.detach(), codes)
        return cls(weights, biases, narrow_factors(lowered))

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor that is trained under a name of its own."""
        for name, weight in self.weights.items():
            yield f"place {name}", weight.place
            yield f"growth {name}", weight.growth
        for name, bias in self.biases.items():
            yield f"bias {name}", bias
        for (name, bits), factor in self.factors.items():
            yield f"factor {name} {bits}", factor

    def grids(self, lowered: LoweredModel) -> dict[Edge, tuple[float, float]]:
        """Return the range of every narrow grid."""
        return scaled_ranges(lowered, self.factors)


class StudentNetwork(QuantizedPass):
    """Computes a network with what is trained, and keeps the outputs of its layers."""

    def __init__(self, lowered: LoweredModel, reference: Reference, trained: Trained) -> None:
        super().__init__(lowered, reference, trained.factors)
        self.outputs: dict[str, Tensor] = {}
        self._trained = trained

    def layer(self, n: fx.Node) -> Tensor:
        """Compute a layer with what is trained, and keep its output."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        bias = self._trained.biases.get(layer_name(n))
        rest = args[2:] if bias is None else (bias, *args[3:])
        found = self.call_function(n.target, (args[0], self._weight(n), *rest), kwargs)
        assert isinstance(found, Tensor)
        self.outputs[n.name] = found
        return found

    def _weight(self, n: fx.Node) -> Tensor:
        codes = self.lowered.weights[self.sites[n.name].index]
        trained = self._trained.weights.get(layer_name(n))
        return codes.dequantize() if trained is None else trained.value()
