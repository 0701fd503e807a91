"""Networks for phones: depthwise convolutions, gates, clamped activations, channel shuffle."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from architectures.parts import CLASSES, Classifier, ConvNorm, SqueezeExcite


class Separable(nn.Sequential):
    """Depthwise and pointwise convolution, each normalized and activated."""

    def __init__(self, wide_in: int, wide: int, stride: int) -> None:
        super().__init__(
            ConvNorm(wide_in, wide_in, 3, stride, groups=wide_in), ConvNorm(wide_in, wide, 1)
        )


class MobileNetV1(nn.Module):
    """Depthwise separable convolutions (Howard et al., 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 16, stride=2)
        self.blocks = nn.Sequential(Separable(16, 32, 1), Separable(32, 32, 2))
        self.head = Classifier(32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


class Inverted(nn.Module):
    """Expand, filter each channel, gate if asked to, project; added to the input if alike."""

    def __init__(
        self, wide_in: int, wide: int, stride: int, act: type[nn.Module], gated: bool = False
    ) -> None:
        super().__init__()
        inner = 3 * wide_in
        self.expand = ConvNorm(wide_in, inner, 1, act=act)
        self.depthwise = ConvNorm(inner, inner, 3, stride, groups=inner, act=act)
        self.gate = SqueezeExcite(inner, nn.Hardsigmoid) if gated else nn.Identity()
        self.project = ConvNorm(inner, wide, 1, act=None)
        self.alike = wide_in == wide and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.gate(self.depthwise(self.expand(x))))
        return x + y if self.alike else y


class MobileNetV2(nn.Module):
    """Inverted residuals with linear bottlenecks and ReLU6 (Sandler et al., 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 16, stride=2, act=nn.ReLU6)
        self.blocks = nn.Sequential(Inverted(16, 16, 1, nn.ReLU6), Inverted(16, 24, 2, nn.ReLU6))
        self.last = ConvNorm(24, 64, 1, act=nn.ReLU6)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(64, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.stem(x))).mean((2, 3)))


class MobileNetV3(nn.Module):
    """Hardswish, SiLU and squeeze-excite with a hard sigmoid (Howard et al., 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 16, stride=2, act=nn.Hardswish)
        self.blocks = nn.Sequential(
            Inverted(16, 16, 1, nn.ReLU, gated=True), Inverted(16, 24, 2, nn.Hardswish, gated=True)
        )
        self.last = ConvNorm(24, 64, 1, act=nn.SiLU)
        self.head = nn.Sequential(nn.Linear(64, 64), nn.Hardswish(), nn.Linear(64, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.last(self.blocks(self.stem(x))), 1)
        return self.head(torch.flatten(x, 1))


class ShuffleUnit(nn.Module):
    """Half of the channels go through, half are filtered; then all change places."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        half = wide // 2
        self.branch = nn.Sequential(
            ConvNorm(half, half, 1),
            ConvNorm(half, half, 3, groups=half, act=None),
            ConvNorm(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        kept, filtered = x.chunk(2, dim=1)
        x = torch.cat([kept, self.branch(filtered)], dim=1)
        batch, wide, height, width = x.shape
        x = x.view(batch, 2, wide // 2, height, width).transpose(1, 2)
        return x.reshape(batch, wide, height, width)


class ShuffleNet(nn.Module):
    """Channel split and shuffle (Ma et al., 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvNorm(3, 32, stride=2), nn.MaxPool2d(3, 2, padding=1))
        self.units = nn.Sequential(ShuffleUnit(32), ShuffleUnit(32))
        self.head = Classifier(32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.units(self.stem(x)))
