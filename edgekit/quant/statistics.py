"""Statistics of tensors, gathered while a calibration source observes a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

SAMPLE_SIZE = 1 << 16
"""Values kept from each tensor of each batch for the range search: at 8 bits the search error of
65,536 values is far below the rounding error it minimises."""


@dataclass(frozen=True)
class TensorStatistics:
    """What is known of one tensor over the whole calibration.

    ``minimum`` and ``maximum`` are over all values; ``channel_*`` are ``[C]`` over every axis but
    axis 1 (axis -1 for tensors of rank 2 and 3 that end in features); ``values`` is a flat random
    sample. ``rule`` says where the statistics come from, for the report. ``prior`` bounds the
    range by what stored statistics say; ``exact`` marks a range that is known and not estimated.
    """

    minimum: float
    maximum: float
    channel_mean: Tensor
    channel_minimum: Tensor
    channel_maximum: Tensor
    values: Tensor
    rule: str
    prior: tuple[float, float] | None = None
    exact: bool = False


@dataclass(frozen=True)
class Statistics:
    """Statistics of a captured network.

    ``tensors`` is keyed by node name. ``second_moments`` holds ``E[x x^T]`` of the unfolded input
    of the layers that were asked for, ``[groups, K, K]``. ``method`` and ``notes`` go to the
    report.
    """

    tensors: Mapping[str, TensorStatistics]
    method: str
    samples: int
    second_moments: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class TensorObserver:
    """Accumulates :class:`TensorStatistics` batch by batch in constant memory."""

    def __init__(self, channel_axis: int, generator: torch.Generator, rule: str) -> None:
        self._axis = channel_axis
        self._generator = generator
        self._rule = rule
        self._count = 0
        self._sum: Tensor | None = None
        self._low: Tensor | None = None
        self._high: Tensor | None = None
        self._values: list[Tensor] = []

    def update(self, x: Tensor) -> None:
        """Add one batch; ``x`` has the same channel count in every call."""
        x = x.detach()
        if x.dim() > 1:
            moved = x.movedim(self._axis, 0).flatten(1)
            total, low, high = moved.sum(1, dtype=torch.float64), moved.amin(1), moved.amax(1)
            self._count += moved.shape[1]
        else:
            total, low, high = x.sum(0, keepdim=True, dtype=torch.float64), x.min()[None], x.max()[None]
            self._count += x.numel()
        if self._sum is None or self._low is None or self._high is None:
            self._sum, self._low, self._high = total, low, high
        else:
            self._sum = self._sum + total
            self._low = torch.minimum(self._low, low)
            self._high = torch.maximum(self._high, high)
        flat = x.reshape(-1)
        if flat.numel() > SAMPLE_SIZE:
            index = torch.randint(flat.numel(), (SAMPLE_SIZE,), generator=self._generator)
            flat = flat[index.to(flat.device)]
        self._values.append(flat.float().cpu().clone())

    def statistics(self) -> TensorStatistics:
        """Return what was gathered; at least one batch must have been seen."""
        assert self._sum is not None and self._low is not None and self._high is not None
        return TensorStatistics(
            minimum=float(self._low.min()),
            maximum=float(self._high.max()),
            channel_mean=(self._sum / self._count).float().cpu(),
            channel_minimum=self._low.float().cpu(),
            channel_maximum=self._high.float().cpu(),
            values=torch.cat(self._values),
            rule=self._rule,
        )


def channel_axis(x: Tensor) -> int:
    """Axis that holds channels or features: 1 for images and maps, the last for the rest."""
    return 1 if x.dim() >= 4 else x.dim() - 1
