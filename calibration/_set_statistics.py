"""BatchNorm statistics of a whole set of samples of which only a part is at hand.

As in DGH (Dinai et al., arXiv 2410.22110), the set as a whole is to match the stored statistics,
not each batch by itself: images may differ as much as real ones do. What the other parts
contributed when they were last seen enters as a constant.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._statistics_losses import Spread
from ._teacher import Moments


class SetStatistics:
    """Mean and variance over all parts, kept as one row of moments for each part.

    Args:
        parts: number of parts; all hold the same number of samples.
    """

    def __init__(self, parts: int) -> None:
        self._first: list[Tensor | None] = [None] * parts
        self._second: list[Tensor | None] = [None] * parts

    def with_part(self, index: int, moments: Sequence[Moments]) -> Spread:
        """Return the set's statistics with part ``index`` as just seen, which carries gradients.

        Parts that were never seen do not count. Channels of all layers stand side by side, ``[D]``.
        """
        first = torch.cat([part.first.mean(0) for part in moments])
        second = torch.cat([part.second.mean(0) for part in moments])
        self._first[index], self._second[index] = first.detach(), second.detach()
        mean = self._average(self._first, index, first)
        return Spread(mean, self._average(self._second, index, second) - mean.square())

    @staticmethod
    def _average(rows: list[Tensor | None], index: int, live: Tensor) -> Tensor:
        others = [row for i, row in enumerate(rows) if i != index and row is not None]
        return torch.stack([live, *others]).mean(0)

    def state(self) -> dict[str, list[Tensor | None]]:
        """Return what a checkpoint keeps."""
        return {"first": list(self._first), "second": list(self._second)}

    def restore(self, state: dict[str, list[Tensor | None]]) -> None:
        """Take over what :meth:`state` returned."""
        self._first, self._second = list(state["first"]), list(state["second"])
