"""Run the float network and its quantized form side by side, layer by layer."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from edgekit.graph import WEIGHTED, OpKind, constant, op_kind
from edgekit.lowering import LoweredModel
from edgekit.quant.affine import broadcast, fake_quantize
from edgekit.reference import Reference
from edgekit.sites import SITE, Role, Site


class Paired(fx.Interpreter):
    """Runs a reference network on the first half of a batch and its quantized form on the second.

    Each quantized layer is handed to :meth:`layer`, which may change its codes or its bias before
    the run goes on; so whatever comes later sees what was decided before it.
    """

    def __init__(self, lowered: LoweredModel, reference: Reference) -> None:
        super().__init__(reference.graph)
        self.lowered = lowered
        self.reference = reference
        self.codes = dict(lowered.weights)
        self.biases = dict(lowered.biases)
        self._sites: dict[str, dict[Role, Site]] = {}
        for site in lowered.sited.sites:
            self._sites.setdefault(site.consumer, {})[site.role] = site

    def run_pairs(self) -> None:
        """Pass all inputs of the reference through both."""
        with torch.no_grad():
            self.run(*(torch.cat([value, value]) for value in self.reference.inputs))

    def layer(
        self, n: fx.Node, site: Site, plain: Tensor, quantized: Tensor, wanted: Tensor
    ) -> Tensor:
        """Return the quantized layer's output.

        Args:
            n: the layer.
            site: its weight's site.
            plain: input of the float layer.
            quantized: input of the quantized one.
            wanted: output of the float layer.
        """
        del plain, wanted
        return self.quantized_output(n, site, quantized)

    def quantized_output(self, n: fx.Node, site: Site, x: Tensor) -> Tensor:
        """Return what a layer computes from ``x`` with its codes and bias of this moment."""
        codes = self.codes[site.index]
        weight = codes.dequantize()
        factor = self.reference.factors.get(n.name)
        if factor is not None:
            weight = weight * broadcast(factor, codes.axis, weight.dim())
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        given = (x, weight, self.bias_of(n), *args[3:]) if len(args) > 2 else (x, weight)
        found = self.call_function(n.target, given, kwargs)
        assert isinstance(found, Tensor)
        return found

    def bias_of(self, n: fx.Node) -> Tensor | None:
        """Return the bias of a quantized layer in the reference's terms."""
        args, _ = self.fetch_args_kwargs_from_env(n)
        own = args[2] if len(args) > 2 else None
        site = self.bias_site(n)
        if site is None:
            return own
        stated = constant(self.lowered.sited.model.graph, self.lowered.sited.node(site.tensor))
        assert isinstance(own, Tensor) and stated is not None
        return own + self.to_reference(n, self.biases[site.index] - stated)

    def bias_site(self, n: fx.Node) -> Site | None:
        """Return the site of a layer's bias where it is corrected."""
        site = self._sites.get(n.name, {}).get(Role.BIAS)
        return site if site is not None and site.index in self.biases else None

    def to_reference(self, n: fx.Node, change: Tensor) -> Tensor:
        """Return in the reference's terms what would change a layer's output channels ``[C]``."""
        factor = self.reference.factors.get(n.name)
        return change if factor is None else change * factor

    def from_reference(self, n: fx.Node, change: Tensor) -> Tensor:
        """Undo :meth:`to_reference`."""
        factor = self.reference.factors.get(n.name)
        return change if factor is None else change / factor

    def run_node(self, n: fx.Node) -> object:
        """Compute both halves of one node."""
        if n.target is SITE:
            return self._site(n)
        site = self._sites.get(n.name, {}).get(Role.WEIGHT)
        if op_kind(n) in WEIGHTED and site is not None and site.index in self.codes:
            return self._layer(n, site)
        if op_kind(n) is OpKind.EMBEDDING and site is not None and site.index in self.codes:
            return self._lookup(n, site)
        return super().run_node(n)

    def _site(self, n: fx.Node) -> object:
        (x, index), _ = self.fetch_args_kwargs_from_env(n)
        assert isinstance(x, Tensor) and isinstance(index, int)
        grid = self.lowered.activations.get(index)
        if grid is None:
            return x
        plain, quantized = x.chunk(2)
        return torch.cat([plain, fake_quantize(quantized, grid)])

    def _lookup(self, n: fx.Node, site: Site) -> Tensor:
        (table, ids, *rest), kwargs = self.fetch_args_kwargs_from_env(n)
        tables = (table, self.codes[site.index].dequantize())
        parts = [
            self.call_function(n.target, (each, half, *rest), kwargs)
            for each, half in zip(tables, ids.chunk(2), strict=True)
        ]
        return torch.cat(parts)

    def _layer(self, n: fx.Node, site: Site) -> Tensor:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        plain, quantized = args[0].chunk(2)
        wanted = self.call_function(n.target, (plain, *args[1:]), kwargs)
        assert isinstance(wanted, Tensor)
        return torch.cat([wanted, self.layer(n, site, plain, quantized, wanted)])
