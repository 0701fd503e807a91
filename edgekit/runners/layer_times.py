"""Where an inference spends its time: a runtime's own layer profile, in one form for all."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np


class LayerKind(str, enum.Enum):
    """What an executed operator does, as far as the speed of INT8 is concerned."""

    INTEGER = "integer"  # a convolution or matrix product with weights, on integers
    FLOAT = "float"  # one in float
    CONVERSION = "conversion"  # to or from integers, or into another memory layout
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class LayerTime:
    """One executed operator.

    Attributes:
        name: as the runtime calls it.
        op: operator type.
        kind: what it does.
        microseconds: typical time for one inference: the median, or the mean where the runtime
            tells nothing else.
        kernel: the runtime's name of the kernel; ``""`` where it does not tell.
        multiply_adds: products it sums, for operators with weights where the sizes are known.
        moved_bytes: bytes of its input, weights and output.
    """

    name: str
    op: str
    kind: LayerKind
    microseconds: float
    kernel: str = ""
    multiply_adds: int | None = None
    moved_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "name": self.name,
            "op": self.op,
            "kind": self.kind.value,
            "microseconds": round(self.microseconds, 3),
            "kernel": self.kernel,
            "multiply_adds": self.multiply_adds,
            "moved_bytes": self.moved_bytes,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayerTime:
        """Read what :meth:`to_dict` wrote."""
        return cls(**{**data, "kind": LayerKind(data["kind"])})


@dataclass(frozen=True, slots=True)
class LayerProfile:
    """The executed operators in order, and the microseconds of an inference outside of them."""

    layers: tuple[LayerTime, ...]
    outside_microseconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "layers": [layer.to_dict() for layer in self.layers],
            "outside_microseconds": self.outside_microseconds,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayerProfile:
        """Read what :meth:`to_dict` wrote."""
        layers = tuple(LayerTime.from_dict(layer) for layer in data["layers"])
        return cls(layers, float(data["outside_microseconds"]))


@runtime_checkable
class LayerProfiler(Protocol):
    """A runner whose runtime can say where the time goes."""

    def profile_layers(self, feeds: Mapping[str, np.ndarray], runs: int) -> LayerProfile:
        """Return the layer profile of ``runs`` inferences."""
        ...
