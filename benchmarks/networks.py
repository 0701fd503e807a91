"""Networks behind the shared evaluation weights, for ``--arch benchmarks.networks:...``.

Definitions follow the published architectures; parameter names are those of the weight files.
Each function builds a network with random weights.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class _PaddedConv(nn.Conv2d):
    """Stride-2 convolution with TensorFlow's SAME padding: one row and column, bottom and right."""

    def forward(self, x: Tensor) -> Tensor:
        if self.stride[0] == 2 and self.kernel_size[0] == 3:
            x = F.pad(x, (0, 1, 0, 1))
        return super().forward(x)


def _conv3(cin: int, cout: int, stride: int, *, bias: bool, groups: int = 1) -> nn.Conv2d:
    padding = 0 if stride == 2 else 1
    return _PaddedConv(cin, cout, 3, stride, padding, bias=bias, groups=groups)


class _BlockA(nn.Module):
    """Basic block of ResNet-20: parameter-free shortcut (option A of He et al., CVPR 2016)."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.pad = (cout - cin) // 2 if cout != cin else 0
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.pad:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(y + x)


class _ResNet20(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*[_BlockA(16, 16, 1) for _ in range(3)])
        self.layer2 = nn.Sequential(_BlockA(16, 32, 2), *[_BlockA(32, 32, 1) for _ in range(2)])
        self.layer3 = nn.Sequential(_BlockA(32, 64, 2), *[_BlockA(64, 64, 1) for _ in range(2)])
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class _BlockTiny(nn.Module):
    """Block of MLPerf Tiny's ResNet-8: convolutions with bias, projecting shortcut without norm."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3(cin, cout, stride, bias=True)
        self.bn1 = nn.BatchNorm2d(cout, eps=1e-3)
        self.conv2 = _conv3(cout, cout, 1, bias=True)
        self.bn2 = nn.BatchNorm2d(cout, eps=1e-3)
        if stride != 1:
            self.shortcut = nn.Conv2d(cin, cout, 1, stride)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (self.shortcut(x) if self.stride != 1 else x))


class _ResNet8(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _conv3(3, 16, 1, bias=True)
        self.bn1 = nn.BatchNorm2d(16, eps=1e-3)
        self.layer1 = _BlockTiny(16, 16, 1)
        self.layer2 = _BlockTiny(16, 32, 2)
        self.layer3 = _BlockTiny(32, 64, 2)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


class _MobileNetV1(nn.Module):
    """Howard et al., "MobileNets" (2017), as Keras builds it: ReLU6, eps 1e-3, SAME padding."""

    _WIDTHS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    _STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)

    def __init__(self, width: float, num_classes: int) -> None:
        super().__init__()
        channels = int(32 * width)
        stem = nn.Sequential(
            _conv3(3, channels, 2, bias=False), nn.BatchNorm2d(channels, eps=1e-3), nn.ReLU6()
        )
        blocks: list[nn.Module] = [stem]
        for full, stride in zip(self._WIDTHS, self._STRIDES, strict=True):
            wide = int(full * width)
            blocks.append(
                nn.Sequential(
                    _conv3(channels, channels, stride, bias=False, groups=channels),
                    nn.BatchNorm2d(channels, eps=1e-3),
                    nn.ReLU6(),
                    nn.Conv2d(channels, wide, 1, bias=False),
                    nn.BatchNorm2d(wide, eps=1e-3),
                    nn.ReLU6(),
                )
            )
            channels = wide
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


def cifar10_resnet20() -> nn.Module:
    """ResNet-20 for CIFAR-10 (He et al., CVPR 2016), 32x32 images to 10 logits."""
    return _ResNet20()


def cifar10_resnet8() -> nn.Module:
    """ResNet-8 of MLPerf Tiny for CIFAR-10; pixels 0 to 255 as they are."""
    return _ResNet8()


def mobilenetv1(width: float = 0.75, num_classes: int = 1000) -> nn.Module:
    """MobileNetV1 with a width multiplier, 224x224 images in -1..1."""
    return _MobileNetV1(width, num_classes)
