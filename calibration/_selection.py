"""Which epoch's generator is kept, and when there is no more to gain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

_BETTER = 1e-3  # relative gain of the held-out loss that counts as progress


class Selection:
    """Keeps the generator with the smallest held-out loss; no test accuracy takes part."""

    def __init__(self) -> None:
        self.epoch = 0
        self.row: dict[str, float] = {}
        self.stale = 0
        self._score = math.inf
        self._kept: dict[str, Tensor] | None = None

    @property
    def found(self) -> bool:
        """Whether there is a generator to fall back on."""
        return self._kept is not None

    def reopen(self) -> None:
        """Let the next epoch win: from here on the generator is after something else."""
        self._score = math.inf

    def judge(self, generator: nn.Module, epoch: int, score: float, row: dict[str, float]) -> None:
        """Keep the generator of this epoch if its held-out loss is the smallest so far."""
        gain = score < self._score * (1 - _BETTER)
        if score < self._score:
            self._score, self.epoch, self.row = score, epoch, row
            state = generator.state_dict()
            self._kept = {name: value.detach().clone() for name, value in state.items()}
        self.stale = 0 if gain else self.stale + 1

    def take(self, generator: nn.Module) -> None:
        """Give the generator the parameters that were kept."""
        if self._kept is not None:
            generator.load_state_dict(self._kept)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "epoch": self.epoch,
            "row": self.row,
            "stale": self.stale,
            "score": self._score,
            "kept": self._kept,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` returned."""
        self.epoch, self.row, self.stale = state["epoch"], state["row"], state["stale"]
        self._score, self._kept = state["score"], state["kept"]
