"""Simulation: run the sited graph in torch with one target's decisions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from edgekit.lowering import LoweredModel
from edgekit.quant.affine import QParams, WeightCodes, fake_quantize
from edgekit.sites import SITE


class _Simulator(fx.Interpreter):
    def __init__(self, lowered: LoweredModel) -> None:
        super().__init__(lowered.sited.model.graph)
        self._activations: Mapping[int, QParams] = lowered.activations
        self._weights: dict[int, Tensor] = {
            index: codes.dequantize() for index, codes in lowered.weights.items()
        }
        self._biases = lowered.biases

    def run_node(self, n: fx.Node) -> object:
        if n.target is not SITE:
            return super().run_node(n)
        (x, index), _ = self.fetch_args_kwargs_from_env(n)
        assert isinstance(x, Tensor) and isinstance(index, int)
        if index in self._activations:
            return fake_quantize(x, self._activations[index])
        if index in self._weights:
            return self._weights[index]
        return self._biases.get(index, x)


def simulate(lowered: LoweredModel, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return the outputs that the target's arithmetic gives, up to float rounding.

    Args:
        lowered: the model with its decisions.
        inputs: network inputs, batch first.
    """
    with torch.no_grad():
        outputs: tuple[Tensor, ...] = _Simulator(lowered).run(*inputs)
    return outputs


def code_names(codes: Mapping[str, WeightCodes]) -> dict[str, Tensor]:
    """Flatten codes into the tensor names of ``quantized.safetensors``."""
    flat: dict[str, Tensor] = {}
    for name, value in codes.items():
        flat[f"{name}.codes"] = value.codes.contiguous()
        flat[f"{name}.scale"] = value.scale.contiguous()
    return flat
