"""What an exporter is: the protocol that ``registry.TARGETS`` entries satisfy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import onnx_ir as ir

from edgekit.errors import EdgekitError
from edgekit.lowering import LoweredModel, LoweringProfile
from edgekit.sites import SitedModel
from edgekit.types import Artifact, Cpu


class PendingExport(Protocol):
    """An export whose slow part may still run in a child process."""

    def wait(self) -> Artifact:
        """Return the finished artifact.

        Raises:
            ExportError: the target's own tools rejected it.
        """
        ...

    def close(self) -> None:
        """Stop what still runs."""
        ...


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished export."""

    artifact: Artifact

    def wait(self) -> Artifact:
        """Return the artifact."""
        return self.artifact

    def close(self) -> None:
        """Nothing runs."""


class Target(Protocol):
    """One runtime that edgekit writes artifacts for.

    Attributes:
        name: key in the registry, and the folder of its files.
        executed: whether the artifact runs on this machine, or is only simulated here.
        why_simulated: why no runtime executes it anywhere; ``None`` where one does.
        activation_bits: widths of activations that it is for, below which a layer cannot go. Every
            target also takes 8 bits in single layers of a narrower scheme.
    """

    name: str
    executed: bool
    why_simulated: str | None
    activation_bits: frozenset[int]

    def missing(self) -> EdgekitError | None:
        """Return why the target cannot be written on this machine, or ``None``."""
        ...

    def profile(self, cpu: Cpu) -> LoweringProfile:
        """Return the target's rules."""
        ...

    def unsupported(self, sited: SitedModel) -> Mapping[str, str]:
        """Return the operators that must stay in float although their kind has integer kernels."""
        ...

    def export(self, template: ir.Model, lowered: LoweredModel, directory: Path) -> PendingExport:
        """Write the target's files below ``directory / name``."""
        ...
