"""What networks with trained rounding share: a pass, and factors on the steps of activations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, fx

from edgekit.graph import WEIGHTED, op_kind
from edgekit.lowering import LoweredModel
from edgekit.quant.affine import QParams
from edgekit.reference import Reference
from edgekit.rounding.learned_ops import quantize
from edgekit.sites import SITE, Role, Site

Edge = tuple[str, int]
"""A tensor's grid: the tensor's node, and the width."""


def edge_of(lowered: LoweredModel, index: int, grid: QParams) -> Edge:
    """Return which tensor's grid an activation site takes."""
    return lowered.placement.tensors[lowered.sited.sites[index].tensor], grid.scheme.bits


def narrow_factors(lowered: LoweredModel) -> dict[Edge, Tensor]:
    """Return a factor of one, to be trained, for the step of every activation below 8 bits."""
    return {
        edge_of(lowered, index, grid): torch.ones(()).requires_grad_()
        for index, grid in lowered.activations.items()
        if grid.scheme.bits < 8
    }


def scaled_ranges(
    lowered: LoweredModel, factors: Mapping[Edge, Tensor]
) -> dict[Edge, tuple[float, float]]:
    """Return the range of every grid that has a factor."""
    found = {}
    for index, grid in lowered.activations.items():
        edge = edge_of(lowered, index, grid)
        if edge in factors:
            factor = float(factors[edge].detach())
            found[edge] = (grid.minimum * factor, grid.maximum * factor)
    return found


class QuantizedPass(fx.Interpreter, ABC):
    """Runs a reference with quantized activations and tables; layers are the subclass's matter."""

    def __init__(
        self, lowered: LoweredModel, reference: Reference, factors: Mapping[Edge, Tensor]
    ) -> None:
        super().__init__(reference.graph)
        self.lowered = lowered
        self.sites: dict[str, Site] = {
            site.consumer: site
            for site in lowered.sited.sites
            if site.role is Role.WEIGHT and site.index in lowered.weights
        }
        self._factors = factors

    @abstractmethod
    def layer(self, n: fx.Node) -> Tensor:
        """Compute a weighted layer with quantized weights."""

    def run_node(self, n: fx.Node) -> object:
        """Compute one node with quantized values."""
        if n.target is SITE:
            return self._site(n)
        if n.name not in self.sites:
            return super().run_node(n)
        if op_kind(n) in WEIGHTED:
            return self.layer(n)
        (_, *rest), kwargs = self.fetch_args_kwargs_from_env(n)  # an embedding
        table = self.lowered.weights[self.sites[n.name].index].dequantize()
        return self.call_function(n.target, (table, *rest), kwargs)

    def _site(self, n: fx.Node) -> object:
        (x, index), _ = self.fetch_args_kwargs_from_env(n)
        assert isinstance(x, Tensor) and isinstance(index, int)
        grid = self.lowered.activations.get(index)
        if grid is None:
            return x
        return quantize(x, grid, self._factors.get(edge_of(self.lowered, index, grid)))
