"""Where synthesized inputs live: from unit-spread signals to the network's input domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgekit.capture import CapturedModel
from edgekit.errors import CalibrationError
from edgekit.signals import PIXEL_SPREAD, input_domain, random_batches


@dataclass(frozen=True)
class InputSpace:
    """The float inputs of a network that an engine shapes; integer inputs stay as drawn.

    Attributes:
        model: the network.
        shaped: positions of the float inputs.
    """

    model: CapturedModel
    shaped: tuple[int, ...]

    @classmethod
    def of(cls, model: CapturedModel) -> InputSpace:
        """Find the float inputs.

        Raises:
            CalibrationError: there is none, so nothing can be optimised.
        """
        shaped = tuple(i for i, s in enumerate(model.inputs) if s.dtype.startswith("float"))
        if not shaped:
            raise CalibrationError(
                "the network has no float input, so no input can be synthesized by gradients",
                "use --calibration renorm, which enumerates integer inputs",
            )
        return cls(model, shaped)

    def sizes(self) -> tuple[tuple[int, ...], ...]:
        """Return the shape of one sample of each shaped input."""
        return tuple(self.model.inputs[i].shape[1:] for i in self.shaped)

    def drawn(self, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw ``count`` random inputs: structured noise, and ids where the network takes ids."""
        (inputs,) = random_batches(self.model, count, count, generator)
        return inputs

    def complete(self, signals: Sequence[Tensor], drawn: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return network inputs: unit-spread ``signals`` in their domain, the rest from ``drawn``.

        A known domain (preprocessing is stated) bounds the values; gradients pass inside it.
        """
        made = list(drawn)
        for position, signal in zip(self.shaped, signals, strict=True):
            made[position] = self.to_domain(position, signal)
        return tuple(made)

    def to_domain(self, position: int, signal: Tensor) -> Tensor:
        """Map a signal of zero mean and unit spread to the domain of one input."""
        domain = input_domain(self.model.inputs[position], self.model.preprocessing)
        if domain is None:
            return signal
        low, high = domain
        scaled = (low + high) / 2 + signal * PIXEL_SPREAD * (high - low)
        return scaled.clamp(low, high)

    def to_signal(self, position: int, value: Tensor) -> Tensor:
        """Invert :meth:`to_domain`."""
        domain = input_domain(self.model.inputs[position], self.model.preprocessing)
        if domain is None:
            return value
        low, high = domain
        return (value - (low + high) / 2) / (PIXEL_SPREAD * (high - low))
