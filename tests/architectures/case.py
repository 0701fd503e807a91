"""One architecture: how it is built, what goes in, and what is known to stay in float."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.options import InputOption, parse_input
from edgekit.types import Task

_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
)
_BATCHES, _BATCH = 4, 16

IMAGE = "1x3x32x32"


@dataclass(frozen=True)
class Case:
    """A network of random weights, and what edgekit is expected to make of it.

    Attributes:
        name: of the architecture, for people.
        family: what it belongs to.
        factory: `module:Class`, below this package.
        inputs: as behind `--input`.
        task: meaning of the first output.
        in_float: target to the layers that do not run on integers, each with a regular expression
            for the reason that the report gives.
        refused: target to a regular expression for the reason why there is no artifact.
        least_sqnr_db: SQNR with the float network that every target reaches.
        engine: the tests also build TensorRT engines, which takes long: one for each family.
    """

    name: str
    family: str
    factory: str
    inputs: tuple[str, ...] = (IMAGE,)
    task: Task = Task.CLASSIFICATION
    in_float: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    least_sqnr_db: float = 25.0
    engine: bool = False

    @property
    def arch(self) -> str:
        """What stands behind `--arch`."""
        return f"{__package__}.{self.factory}"

    @property
    def options(self) -> tuple[InputOption, ...]:
        """The inputs, parsed."""
        return tuple(parse_input(text) for text in self.inputs)

    def build(self) -> nn.Module:
        """Return the network; the weights are the same each time."""
        module, name = self.factory.split(":")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(sum(map(ord, self.name)))
            network = getattr(importlib.import_module(f"{__package__}.{module}"), name)()
            _vary_norms(network)
            _settle_norms(network, self.options)
        return network.eval()

    def write_weights(self, folder: Path) -> Path:
        """Save the state dict, as a training script would, and return the file."""
        path = folder / f"{self.name.lower().replace(' ', '_')}.pt"
        torch.save(self.build().state_dict(), path)
        return path


def _vary_norms(network: nn.Module) -> None:
    """Give every normalization a gamma and beta as training leaves them: all different."""
    for module in network.modules():
        if isinstance(module, _NORMS) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)


def _settle_norms(network: nn.Module, inputs: tuple[InputOption, ...]) -> None:
    """Let every BatchNorm learn its mean and variance from some inputs.

    Statistics that nothing ever produced would say nothing of a quantizer that trusts them. The
    inputs are drawn here and by other means than edgekit's, so that they are nobody's own.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None  # the plain mean over all batches
    network.train()
    with torch.no_grad():
        for _ in range(_BATCHES if norms else 0):
            network(*(_draw(option.shape) for option in inputs))


def _draw(shape: tuple[int, ...]) -> Tensor:
    """Return noise, half of it smooth along the last two axes of images."""
    size = (_BATCH, *shape[1:])
    noise = torch.randn(size)
    if len(size) != 4:
        return noise
    coarse = torch.randn(_BATCH, size[1], size[2] // 8, size[3] // 8)
    return 0.5 * noise + F.interpolate(coarse, size[2:], mode="bilinear")
