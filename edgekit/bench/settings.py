"""How a benchmark measures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from edgekit.errors import ConfigError

BLOCKS, SINGLE_STREAM = "blocks", "single-stream"
MODES = (BLOCKS, SINGLE_STREAM)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user chose.

    Attributes:
        blocks: of each lane; in a single stream, the parts that its intervals come from.
        block_seconds: length of a block.
        warmup_seconds: inferences before each block.
        threads: of the runtimes; ``None`` for each one's own choice.
        batch: samples in an inference.
        mode: ``"blocks"`` or ``"single-stream"``.
        min_seconds: shortest duration of a single stream.
        min_queries: fewest inferences of a single stream.
        copies: whether copies to and from a GPU belong to an inference.
        cuda_graph: whether an inference is the launch of a CUDA graph, where there is CUDA.
        energy: whether power is sampled, where it can be read.
    """

    blocks: int
    block_seconds: float
    warmup_seconds: float
    threads: int | None
    batch: int
    mode: str = BLOCKS
    min_seconds: float = 600.0
    min_queries: int = 100
    copies: bool = True
    cuda_graph: bool = False
    energy: bool = True

    def check(self) -> None:
        """Raise where a setting is out of range.

        Raises:
            ConfigError: it says which.
        """
        if self.mode not in MODES:
            raise ConfigError(f"mode '{self.mode}' is not one of {', '.join(MODES)}")
        if self.blocks < 2:
            raise ConfigError(f"{self.blocks} blocks: an interval needs at least 2")
        if not self.block_seconds > 0 or self.warmup_seconds < 0:
            raise ConfigError(
                "the seconds of a block must be positive, those of warm-up at least 0"
            )
        if not self.min_seconds >= 0 or self.min_queries < 1:
            raise ConfigError(
                "a single stream takes at least 0 seconds and 1 query, not "
                f"{self.min_seconds:g} and {self.min_queries}"
            )
        for name, value in (("threads", self.threads), ("batch", self.batch)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)
