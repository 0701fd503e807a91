"""Statistics of tensors, gathered while a calibration source observes a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from edgekit.synthetic import SyntheticSet

SAMPLE_SIZE = 1 << 16
"""Values kept from each tensor of each batch for the range search: at 8 bits the search error of
65,536 values is far below the rounding error it minimises."""

MAX_VALUES = 4 * SAMPLE_SIZE
"""Values kept from each tensor in all; the usual two batches stay below."""


@dataclass(frozen=True)
class TensorStatistics:
    """What is known of one tensor over the whole calibration.

    ``minimum`` and ``maximum`` are over all values; ``channel_*`` are ``[C]`` over every axis but
    the tensor's channel axis; ``values`` is a flat random sample and ``channels`` the channel of
    each sampled value. ``rule`` says where the statistics come from, for the report. ``prior``
    bounds the range by what stored statistics say; ``exact`` marks a range that is known and not
    estimated. ``margin`` widens the range found, within ``minimum`` and ``maximum``: real data
    has heavier tails than some sources. ``stored`` is each channel's mean and deviation on the
    training data, ``[C]`` both, where a BatchNorm knew them.
    """

    minimum: float
    maximum: float
    channel_mean: Tensor
    channel_minimum: Tensor
    channel_maximum: Tensor
    values: Tensor
    channels: Tensor
    rule: str
    prior: tuple[float, float] | None = None
    exact: bool = False
    margin: float = 1.0
    stored: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Statistics:
    """Statistics of a captured network.

    ``tensors`` is keyed by node name. ``second_moments`` holds ``E[x x^T]`` of the unfolded input
    of the layers that were asked for, ``[groups, K, K]``. ``method`` and ``notes`` go to the
    report. ``inputs`` are the samples where the source has such; ``altered`` says that they mean
    something only to a network whose BatchNorms are in batch mode.
    """

    tensors: Mapping[str, TensorStatistics]
    method: str
    samples: int
    second_moments: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    inputs: SyntheticSet | None = None
    altered: bool = False


class TensorObserver:
    """Accumulates :class:`TensorStatistics` batch by batch in constant memory."""

    def __init__(
        self, channel_axis: int, generator: torch.Generator, rule: str, margin: float = 1.0
    ) -> None:
        self._axis = channel_axis
        self._generator = generator
        self._rule = rule
        self._margin = margin
        self._count = 0
        self._sum: Tensor | None = None
        self._low: Tensor | None = None
        self._high: Tensor | None = None
        self._values: list[Tensor] = []
        self._channels: list[Tensor] = []

    def update(self, x: Tensor) -> None:
        """Add one batch; ``x`` has the same channel count in every call."""
        x = x.detach()
        if x.dim() > 1:
            axes = [axis for axis in range(x.dim()) if axis != self._axis % x.dim()]
            total, low, high = x.sum(axes).double(), x.amin(axes), x.amax(axes)
            self._count += x.numel() // x.shape[self._axis]
        else:
            total, low, high = (
                x.sum(0, keepdim=True, dtype=torch.float64),
                x.min()[None],
                x.max()[None],
            )
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
        else:
            index = torch.arange(flat.numel())
        self._values.append(flat.float().cpu().clone())
        self._channels.append(self._channel_of(index, x.shape))
        if sum(map(len, self._values)) > MAX_VALUES:
            self._thin()

    def _thin(self) -> None:
        """Keep a random half of what was sampled: many small batches must not fill the memory."""
        values, channels = torch.cat(self._values), torch.cat(self._channels)
        kept = torch.randperm(len(values), generator=self._generator)[: MAX_VALUES // 2]
        self._values, self._channels = [values[kept]], [channels[kept]]

    def _channel_of(self, index: Tensor, shape: torch.Size) -> Tensor:
        """Return the channel of each flat index into a tensor of ``shape``."""
        if len(shape) < 2:
            return torch.zeros_like(index)
        axis = self._axis % len(shape)
        return index // shape[axis + 1 :].numel() % shape[axis]

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
            channels=torch.cat(self._channels),
            rule=self._rule,
            margin=self._margin,
        )
