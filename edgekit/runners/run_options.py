"""What a user may choose beyond the number of threads: copies, CUDA graphs, the network's file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from edgekit.types import InputSpec


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """How a file of weights becomes a network, as ``edgekit.loading.load`` takes it.

    Attributes:
        arch: ``zoo:NAME`` or ``module:factory(...)``, where the file holds weights alone.
        weights: which of several sets of weights.
        trust_pickle: whether code in the file may run where opening it needs that.
        inputs: names, sizes and types of the inputs, where the file does not tell them.
    """

    arch: str | None = None
    weights: str | None = None
    trust_pickle: bool = False
    inputs: tuple[InputSpec, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "arch": self.arch,
            "weights": self.weights,
            "trust_pickle": self.trust_pickle,
            "inputs": [spec.to_dict() for spec in self.inputs],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NetworkOptions:
        """Read what :meth:`to_dict` wrote."""
        inputs = tuple(InputSpec.from_dict(spec) for spec in data["inputs"])
        return cls(data["arch"], data["weights"], bool(data["trust_pickle"]), inputs)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Choices of a benchmark that only some runners know.

    Attributes:
        copies: whether an inference copies its inputs to the GPU and its outputs back.
        cuda_graph: whether it is one launch of a recorded CUDA graph.
        cache: folder of what a runtime builds once for all blocks, such as TensorRT engines;
            ``None`` for none that outlives the runner.
        network: how torch opens a file.
        folder: where the user's own modules are importable from, for ``module:factory``.
    """

    copies: bool = True
    cuda_graph: bool = False
    cache: Path | None = None
    network: NetworkOptions = field(default_factory=NetworkOptions)
    folder: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "copies": self.copies,
            "cuda_graph": self.cuda_graph,
            "cache": None if self.cache is None else str(self.cache),
            "network": self.network.to_dict(),
            "folder": None if self.folder is None else str(self.folder),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunOptions:
        """Read what :meth:`to_dict` wrote."""
        cache, folder = (None if data[k] is None else Path(data[k]) for k in ("cache", "folder"))
        network = NetworkOptions.from_dict(data["network"])
        return cls(bool(data["copies"]), bool(data["cuda_graph"]), cache, network, folder)


@dataclass(frozen=True, slots=True)
class Setup:
    """How a runner ran.

    Attributes:
        device: what computed, such as ``"cpu"`` or ``"cuda"``.
        copies: whether the copies to and from the device are part of an inference; ``None`` where
            there are none.
        cuda_graph: whether an inference is the launch of a CUDA graph; ``None`` without CUDA.
        options: what was passed to the runtime beyond its defaults, as text.
    """

    device: str = "cpu"
    copies: bool | None = None
    cuda_graph: bool | None = None
    options: Mapping[str, str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "device": self.device,
            "copies": self.copies,
            "cuda_graph": self.cuda_graph,
            "options": dict(self.options or {}),
        }


@runtime_checkable
class TunableRunner(Protocol):
    """A runner that takes :class:`RunOptions`, and tells more than latencies."""

    def tune(self, options: RunOptions) -> None:
        """Take the options; called before the artifact is opened."""
        ...

    @property
    def setup(self) -> Setup:
        """How it runs; readable while it is open."""
        ...

    def device_times(self, runs: int) -> list[float] | None:
        """Run what was bound last, and return the milliseconds that the device worked on each run.

        Told by events on the device's own clock, without copies; ``None`` where there are none.
        """
        ...
