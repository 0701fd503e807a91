"""What the usual networks lack: other normalizations, odd places, shared and bare weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from architectures.parts import CLASSES, Classifier, ConvNorm


class GroupNormNet(nn.Module):
    """GroupNorm behind every convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.GroupNorm(4, 16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.GroupNorm(8, 32),
            nn.SiLU(),
        )
        self.head = Classifier(32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class InstanceNormNet(nn.Module):
    """Style transfer in small: reflection padding, InstanceNorm, nearest upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(3, 16, 3),
            nn.InstanceNorm2d(16, affine=True),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.InstanceNorm2d(32, affine=True),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(32, 16, 3, padding=1),
            nn.InstanceNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 3, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class LeakyNet(nn.Module):
    """PReLU with one slope for each channel, and LeakyReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            ConvNorm(3, 16, act=None),
            nn.PReLU(16),
            ConvNorm(16, 32, stride=2, act=None),
            nn.LeakyReLU(0.1),
            ConvNorm(32, 32, act=nn.PReLU),
        )
        self.head = Classifier(32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class SharedWeights(nn.Module):
    """One convolution that runs three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 16)
        self.again = nn.Conv2d(16, 16, 3, padding=1)
        self.head = Classifier(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = F.relu(self.again(x))
        return self.head(x)


class NormBehindPooling(nn.Module):
    """BatchNorm behind a pooling: there is no layer that it could be folded into."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(32)
        self.head = Classifier(32)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return self.head(F.relu(self.norm2(F.avg_pool2d(self.conv2(x), 2))))


class NormBehindSum(nn.Module):
    """BatchNorm behind a sum, as before activation in residual networks (He et al., 2016b)."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 16, 3, padding=1)
        self.narrow = nn.Conv2d(3, 16, 1)
        self.norm = nn.BatchNorm2d(16)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(16)
        self.head = Classifier(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(x) + self.narrow(x)
        y = self.conv(F.relu(self.norm(x)))
        return self.head(F.relu(self.norm2(x + y)))


class Functional(nn.Module):
    """Parameters without modules: ``F.conv2d``, ``F.linear`` and ``@``."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(0.3 * torch.randn(16, 3, 3, 3))
        self.mix = nn.Parameter(0.3 * torch.randn(16, 32))
        self.weight = nn.Parameter(0.2 * torch.randn(CLASSES, 32))
        self.bias = nn.Parameter(torch.randn(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.kernel, stride=2, padding=1))
        x = F.relu(x.mean((2, 3)) @ self.mix)
        return F.linear(x, self.weight, self.bias)
