"""Convolutional classifiers: plain, residual, concatenating and with groups."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from architectures.parts import CLASSES, Classifier, ConvNorm


class Vgg(nn.Module):
    """Convolutions and pooling, then a deep head with dropout (Simonyan and Zisserman, 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            ConvNorm(3, 16),
            ConvNorm(16, 16),
            nn.MaxPool2d(2),
            ConvNorm(16, 32),
            nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(
            nn.Linear(32 * 8 * 8, 64),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(64, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.features(x), 1))


class Residual(nn.Module):
    """Two convolutions around which the input, or a projection of it, is added."""

    def __init__(self, wide_in: int, wide: int, stride: int) -> None:
        super().__init__()
        self.first = ConvNorm(wide_in, wide, stride=stride)
        self.second = ConvNorm(wide, wide, act=None)
        same = wide_in == wide and stride == 1
        self.shortcut = nn.Identity() if same else ConvNorm(wide_in, wide, 1, stride, act=None)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


class ResNet(nn.Module):
    """Residual blocks with and without a projection (He et al., 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvNorm(3, 16), nn.MaxPool2d(3, 2, padding=1))
        self.blocks = nn.Sequential(Residual(16, 16, 1), Residual(16, 32, 2))
        self.head = Classifier(32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


class DenseLayer(nn.Module):
    """BatchNorm, ReLU and convolution, whose result is appended to the input."""

    def __init__(self, wide: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(wide)
        self.conv = nn.Conv2d(wide, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class DenseNet(nn.Module):
    """Concatenation, and normalization before activation and layer (Huang et al., 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.dense = nn.Sequential(DenseLayer(16, 8), DenseLayer(24, 8))
        self.transition = nn.Sequential(
            nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 1, bias=False), nn.AvgPool2d(2)
        )
        self.norm = nn.BatchNorm2d(16)
        self.head = Classifier(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.transition(self.dense(self.stem(x)))
        return self.head(F.relu(self.norm(x)))


class RegNetBlock(nn.Module):
    """Bottleneck with a grouped convolution."""

    def __init__(self, wide_in: int, wide: int, group_width: int) -> None:
        super().__init__()
        self.inside = nn.Sequential(
            ConvNorm(wide_in, wide, 1), ConvNorm(wide, wide, 3, 2, groups=wide // group_width)
        )
        self.outside = ConvNorm(wide, wide, 1, act=None)
        self.shortcut = ConvNorm(wide_in, wide, 1, 2, act=None)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.outside(self.inside(x)) + self.shortcut(x))


class RegNet(nn.Module):
    """Bottlenecks with groups of eight channels (Radosavovic et al., 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 16, stride=2)
        self.blocks = nn.Sequential(RegNetBlock(16, 32, 8), RegNetBlock(32, 32, 8))
        self.head = Classifier(32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))
