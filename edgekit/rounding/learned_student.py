"""What learned rounding changes, and the quantized network that computes with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from edgekit.graph import WEIGHTED, constant, op_kind
from edgekit.lowering import LoweredModel
from edgekit.quant.affine import SMALLEST_SCALE, WeightCodes, broadcast, weight_scheme
from edgekit.reference import Reference, channel_axis, pooled_input
from edgekit.rounding.learned_ops import compare
from edgekit.rounding.quantized_pass import Edge, QuantizedPass, narrow_factors, scaled_ranges
from edgekit.sites import SITE, Role, layer_name

_VALUES = 1 << 26
"""Outputs of weighted layers that a step computes: a quarter GiB, and backward keeps three times as
much. Lite0 then takes 10 images of 224 x 224."""
_FEWEST, _MOST = 4, 32


@dataclass
class SoftWeight:
    """A weight whose place between two neighbours on its grid is learned, and so is its step.

    ``down`` is the lower neighbour of each weight, fixed; ``offset`` in [0, 1] where it lies above
    that; ``growth`` the logarithm of what its step is multiplied by, ``[C]``.
    """

    start: WeightCodes
    down: Tensor
    offset: Tensor
    growth: Tensor

    @classmethod
    def of(cls, weight: Tensor, start: WeightCodes, pull: float) -> SoftWeight:
        """Begin between the float weight and given codes, ``pull`` of the way to these."""
        scheme = weight_scheme(start.bits, start.axis)
        scaled = weight / broadcast(start.scale, start.axis, weight.dim())
        down = scaled.floor().clamp_(scheme.quant_min, scheme.quant_max - 1)
        return cls(
            start,
            down,
            (scaled + pull * (start.codes - scaled) - down).clamp_(0, 1).requires_grad_(),
            torch.zeros_like(start.scale).requires_grad_(),
        )

    def value(self, steepness: float) -> Tensor:
        """Return the weight with offsets drawn apart by ``steepness`` (1: as they are)."""
        part = self.offset if steepness == 1 else (self.offset - 0.5) * steepness + 0.5
        codes = self.down + part.clamp(0, 1)
        scale = self.start.scale * self.growth.exp()
        return codes * broadcast(scale, self.start.axis, codes.dim())

    def codes(self) -> WeightCodes:
        """Return the nearer neighbours, with the learned steps as FP16 numbers."""
        codes = (self.down + (self.offset.detach() >= 0.5)).to(torch.int8)
        scale = self.start.scale * self.growth.detach().exp()
        return replace(
            self.start, codes=codes, scale=scale.half().float().clamp_min(SMALLEST_SCALE)
        )


@dataclass(frozen=True)
class Variables:
    """All that is learned: weights by layer, and factors on the steps of narrow activations."""

    weights: Mapping[str, SoftWeight]
    factors: Mapping[Edge, Tensor]

    def grids(self, lowered: LoweredModel) -> dict[Edge, tuple[float, float]]:
        """Return the learned range of every narrow grid."""
        return scaled_ranges(lowered, self.factors)


def variables_of(lowered: LoweredModel, pull: float, *, on_noise: bool) -> Variables:
    """Return what can be learned of a model: weights and activations below 8 bits.

    Codes in blocks stay as they are, and so do layers behind a pooling where there is only noise.

    Args:
        lowered: the model, rounded by another method.
        pull: how far towards its codes the soft places begin.
        on_noise: whether only noise, through the network's twin, is learned on.
    """
    weights: dict[str, SoftWeight] = {}
    for site in lowered.sited.sites:
        codes = lowered.weights.get(site.index)
        layer = lowered.sited.node(site.consumer)
        if site.role is not Role.WEIGHT or codes is None or op_kind(layer) not in WEIGHTED:
            continue
        if on_noise and pooled_input(layer) is not None:
            continue
        name = layer_name(layer)
        if codes.bits < 8 and codes.block is None and name not in weights:
            weight = constant(lowered.sited.model.graph, lowered.sited.node(site.tensor))
            assert weight is not None
            weights[name] = SoftWeight.of(weight.detach(), codes, pull)
    return Variables(weights, narrow_factors(lowered))


class Teacher(fx.Interpreter):
    """The float network; keeps the output of every weighted layer."""

    def __init__(self, reference: Reference) -> None:
        super().__init__(reference.graph)
        self.outputs: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        """Compute one node."""
        if n.target is SITE:
            return self.env[n.args[0]]  # type: ignore[index]
        value = super().run_node(n)
        if op_kind(n) in WEIGHTED:
            assert isinstance(value, Tensor)
            self.outputs[n.name] = value
        return value


def affordable_batch(reference: Reference) -> int:
    """Return how many samples one step of learning takes."""
    teacher = Teacher(reference)
    with torch.no_grad():
        teacher.run(*(value[:1] for value in reference.inputs))
    values = sum(output.numel() for output in teacher.outputs.values())
    return min(max(_VALUES // values, _FEWEST), _MOST)


class Student(QuantizedPass):
    """The quantized network on a reference, its layers' means held at those of the float one.

    Biases are corrected elsewhere, so errors that a bias takes back are none here.
    """

    def __init__(self, lowered: LoweredModel, reference: Reference, variables: Variables) -> None:
        super().__init__(lowered, reference, variables.factors)
        self._steepness: float | None = None
        self._reference = reference
        self._variables = variables
        self._teacher = Teacher(reference)
        self._losses: list[Tensor] = []

    def loss(self, inputs: tuple[Tensor, ...], steepness: float | None) -> Tensor:
        """Return how far the quantized network is from the float one.

        That is the mean over the weighted layers of the squared error of their output, relative to
        its variance; a scalar.

        Args:
            inputs: one tensor for each network input.
            steepness: of the soft rounding (:meth:`SoftWeight.value`); ``None`` is hard.
        """
        self._steepness = steepness
        with torch.no_grad():
            self._teacher.run(*inputs)
        self._losses = []
        self.run(*inputs)
        self._teacher.outputs.clear()
        return torch.stack(self._losses).sum()

    def layer(self, n: fx.Node) -> Tensor:
        """Compute a layer, note its error, and return it with the mean of the float one."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        weight = self._weight(n)
        if self._reference.factors and pooled_input(n) is not None:
            weight = weight.detach()
        found = self.call_function(n.target, (args[0], weight, *args[2:]), kwargs)
        assert isinstance(found, Tensor)
        target = self._teacher.outputs.pop(n.name)
        spread = float(target.var()) * target.numel() + 1e-12
        importance = 1 / (spread * len(self.sites))
        same, loss = compare(found, target, channel_axis(n, found), importance)
        self._losses.append(loss)
        return same

    def _weight(self, n: fx.Node) -> Tensor:
        codes = self.lowered.weights[self.sites[n.name].index]
        soft = self._variables.weights.get(layer_name(n))
        if soft is None:
            weight = codes.dequantize()
        elif self._steepness is None:
            weight = soft.codes().dequantize()
        else:
            weight = soft.value(self._steepness)
        factor = self._reference.factors.get(n.name)
        return weight if factor is None else weight * broadcast(factor, codes.axis, weight.dim())
