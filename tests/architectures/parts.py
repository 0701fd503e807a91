"""Layers that several of the networks are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 10


class ConvNorm(nn.Sequential):
    """Convolution without bias, BatchNorm and, unless `act` is `None`, an activation."""

    def __init__(
        self,
        wide_in: int,
        wide_out: int,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        act: type[nn.Module] | None = nn.ReLU,
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(wide_in, wide_out, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(wide_out),
        ]
        if act is not None:
            layers.append(act())
        super().__init__(*layers)


class SqueezeExcite(nn.Module):
    """Scale the channels by gates that a bottleneck computes from their means."""

    def __init__(self, wide: int, gate: type[nn.Module] = nn.Sigmoid) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(wide, wide // 4, 1)
        self.expand = nn.Conv2d(wide // 4, wide, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(x, 1)
        return x * self.gate(self.expand(F.relu(self.reduce(pooled))))


class Classifier(nn.Module):
    """Mean over all positions, then a linear layer."""

    def __init__(self, wide: int, classes: int = CLASSES) -> None:
        super().__init__()
        self.linear = nn.Linear(wide, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
