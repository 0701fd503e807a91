"""DCAP: an embedding for few-shot learning, by dense classification and attentive pooling.

Method: DCAP, dense classification and attentive pooling for few-shot learning (arXiv 2103.16009,
later in ACM TOMM). With a map of local descriptors ``X = f(I)``, ``[N, C, H, W]``::

    dense classification   logits[n, :, h, w] = W X[n, :, h, w] + b         (training, stage 1)
    attentive pooling      a = g([X ; GAP(X)]),  A = softmax over h, w of a  (stage 2, and export)
                           z = sum over h, w of A[h, w] X[:, h, w]

``g`` is a 3x3 convolution to 8 channels, LeakyReLU(0.1) and a 1x1 convolution to one. The paper's
own scorer was not published; this is the form that fits its abstract and its code.

The classifier is no part of the embedding. It stays with the weights, and
:meth:`Dcap.class_teacher` hands it to engines that want classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.architecture import WeightsOrigin, ZooModel
from edgekit.errors import ConfigError
from edgekit.procedural.scenes import draw_scene
from edgekit.types import InputSpec, Preprocessing, Task

from .batchnorm import recalibrate
from .shipped import shipped_weights

BASE_CLASSES = 64
"""Classes of the dense classifier; 64 are miniImageNet's."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SLOPE = 0.1
_SCORER_CHANNELS = 8
_CONV4 = (64, 64, 64, 64)
_SMALL = (32, 64, 64, 128)
_RESNET12 = (64, 128, 256, 512)
_SIDE, _SMALL_SIDE = 84, 64
_SEED, _SEEDED_IMAGES = 2021, 8
_SEEDED_SCORES = 2.0  # deviation of what the softmax reads, so that it is far from uniform


class ConvBlock(nn.Module):
    """``MaxPool2(ReLU(BN(Conv3 x)))``: ``[N, in, H, W]`` to ``[N, out, H/2, W/2]``."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(cout)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)


class ResidualBlock(nn.Module):
    """Three 3x3 convolutions beside one 1x1, summed, then LeakyReLU(0.1) and MaxPool2.

    ``[N, in, H, W]`` to ``[N, out, H/2, W/2]``; each convolution has a BatchNorm.
    """

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        widths = (cin, cout, cout, cout)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, 1, 1, bias=False) for a, b in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(cout) for _ in range(3))
        self.shortcut = nn.Conv2d(cin, cout, 1, bias=False)
        self.shortcut_norm = nn.BatchNorm2d(cout)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            out = norm(conv(out))
            if index < 2:
                out = F.leaky_relu(out, _SLOPE)
        out = F.leaky_relu(out + self.shortcut_norm(self.shortcut(x)), _SLOPE)
        return F.max_pool2d(out, 2)


class Backbone(nn.Module):
    """Blocks that halve height and width, then the tail ``LeakyReLU(BN(x))``.

    The tail's BatchNorm follows a max pool, so no convolution before it can take it in.

    Shapes: ``[N, 3, H, W]`` to descriptors ``[N, C, H/2^blocks, W/2^blocks]``, rounded down.
    """

    def __init__(self, block: type[ConvBlock | ResidualBlock], widths: Sequence[int]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(block(a, b) for a, b in itertools.pairwise((3, *widths))))
        self.tail = nn.BatchNorm2d(widths[-1])

    def forward(self, image: Tensor) -> Tensor:
        return F.leaky_relu(self.tail(self.blocks(image)), _SLOPE)


class AttentivePooling(nn.Module):
    """``z = sum of softmax(g([X ; GAP(X)])) X``: ``[N, C, H, W]`` to ``[N, C]``.

    The 3x3 convolution of ``[X ; GAP(X)]`` is written as the sum of its halves. The second reads
    the same vector everywhere, so its response depends on the place only through the taps that
    fall on the zero padding: it is a linear layer of the pooled vector, one row for each channel
    and place. No graph has to spread and concatenate the vector, and both halves are layers that
    integers can run. ``joint`` keeps the convolution's own layout ``[8, 2C, 3, 3]``.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.channels, self.height, self.width = channels, height, width
        self.joint = nn.Conv2d(2 * channels, _SCORER_CHANNELS, 3, 1, 1)
        self.score = nn.Conv2d(_SCORER_CHANNELS, 1, 1)
        self.register_buffer("taps", _taps_inside(height, width), persistent=False)
        self.pool_evenly()

    def pool_evenly(self) -> None:
        """Let every place count the same: ``z`` is then the global average."""
        nn.init.zeros_(self.score.weight)
        bias = self.score.bias
        assert bias is not None
        nn.init.zeros_(bias)

    def weights(self, descriptors: Tensor) -> Tensor:
        """Return the places' weights ``[N, H, W]``, which sum to one."""
        local, spread = self.joint.weight.split(self.channels, 1)
        pooled = F.adaptive_avg_pool2d(descriptors, 1).flatten(1)
        places = self.height * self.width
        assert isinstance(self.taps, Tensor)
        rows = torch.matmul(spread.flatten(2), self.taps)  # [8, C, places]
        rows = rows.permute(0, 2, 1).reshape(_SCORER_CHANNELS * places, self.channels)
        common = F.linear(pooled, rows).reshape(-1, _SCORER_CHANNELS, self.height, self.width)
        hidden = F.conv2d(descriptors, local, self.joint.bias, padding=1) + common
        scores = self.score(F.leaky_relu(hidden, _SLOPE)).flatten(1)
        weights: Tensor = scores.softmax(1).reshape(-1, self.height, self.width)
        return weights

    def forward(self, descriptors: Tensor) -> Tensor:
        weighted = descriptors * self.weights(descriptors).unsqueeze(1)
        return weighted.flatten(2).sum(2)


def _taps_inside(height: int, width: int) -> Tensor:
    """Return ``[9, height * width]``: which taps of a 3x3 convolution with padding lie inside."""
    ones = torch.ones(1, 1, height, width)
    return F.unfold(ones, 3, padding=1)[0]


class Dcap(nn.Module):
    """Embeds pictures: ``[N, 3, H, W]`` float32 to ``{"embedding": [N, C]}``.

    Attributes:
        backbone: picture to descriptors.
        pooling: descriptors to the embedding.
        classifier: one descriptor to logits of the classes it was trained on.
    """

    def __init__(self, backbone: Backbone, side: int, base_classes: int) -> None:
        super().__init__()
        if base_classes < 1:
            raise ConfigError(f"dcap: base_classes={base_classes}, expected at least 1")
        grid = side >> len(backbone.blocks)
        self.backbone = backbone
        self.pooling = AttentivePooling(backbone.tail.num_features, grid, grid)
        self.classifier = nn.Linear(backbone.tail.num_features, base_classes)
        _initialize(backbone)
        nn.init.normal_(self.classifier.weight, 0.0, 0.01)
        nn.init.zeros_(self.classifier.bias)

    def descriptors(self, image: Tensor) -> Tensor:
        """Return the local descriptors ``[N, C, h, w]``."""
        found: Tensor = self.backbone(image)
        return found

    def dense_logits(self, descriptors: Tensor) -> Tensor:
        """Return the class logits of every place, ``[N, classes, h, w]``."""
        weight, bias = self.classifier.weight, self.classifier.bias
        return F.conv2d(descriptors, weight[:, :, None, None], bias)

    def embed(self, image: Tensor) -> Tensor:
        """Return the embedding ``[N, C]``."""
        pooled: Tensor = self.pooling(self.descriptors(image))
        return pooled

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"embedding": self.embed(image)}

    def class_teacher(self) -> nn.Module:
        """Return the classifier that the same weights make: ``[N, 3, H, W]`` to logits."""
        return ClassTeacher(self)


class ClassTeacher(nn.Module):
    """The mean over places of the dense logits, which is the classifier of the average."""

    def __init__(self, network: Dcap) -> None:
        super().__init__()
        self.backbone, self.classifier = network.backbone, network.classifier

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        pooled = F.adaptive_avg_pool2d(self.backbone(image), 1).flatten(1)
        return {"logits": self.classifier(pooled)}


def _initialize(backbone: Backbone) -> None:
    """Draw each convolution from N(0, 2 / (k^2 C_out))."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def dcap(backbone: str = "resnet12", base_classes: int = BASE_CLASSES) -> Dcap:
    """Build the paper's network for 84x84.

    Parameters: ResNet-12 7,997,824 and its scorer 73,745, or Conv-4 112,960 and 9,233; the
    classifier apart.

    Args:
        backbone: ``resnet12`` or ``conv4``.
        base_classes: classes of the classifier.

    Raises:
        ConfigError: another backbone.
    """
    if backbone == "resnet12":
        return Dcap(Backbone(ResidualBlock, _RESNET12), _SIDE, base_classes)
    if backbone == "conv4":
        return Dcap(Backbone(ConvBlock, _CONV4), _SIDE, base_classes)
    raise ConfigError(f"dcap: backbone='{backbone}', expected resnet12 or conv4")


def dcap_small(base_classes: int = BASE_CLASSES) -> Dcap:
    """Build the network that is trained here: four blocks of 32 to 128 channels, for 64x64."""
    return Dcap(Backbone(ConvBlock, _SMALL), _SMALL_SIDE, base_classes)


def seeded_dcap_weights() -> dict[str, Tensor]:
    """Return random weights of the ResNet-12 with the statistics that drawn pictures give it.

    The scorer's last layer is random too, so that the weights of places are far from even.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        network = dcap()
        nn.init.normal_(network.pooling.score.weight)
    pictures = _drawn_pictures()
    recalibrate(network, [pictures])
    hidden: list[Tensor] = []
    score = network.pooling.score
    handle = score.register_forward_hook(lambda _module, _args, out: hidden.append(out))
    with torch.no_grad():
        network.embed(pictures)
        score.weight.mul_(_SEEDED_SCORES / hidden[0].std())
    handle.remove()
    return network.state_dict()


def _drawn_pictures() -> Tensor:
    """Return normalized scenes ``[N, 3, 84, 84]`` float32."""
    drawn = [draw_scene(np.random.default_rng([_SEED, k]), _SIDE) for k in range(_SEEDED_IMAGES)]
    pixels = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 255.0
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean) / std


def load_dcap_small_weights() -> dict[str, Tensor]:
    """Read the weights that were trained here."""
    return shipped_weights("dcap_small")


def _preprocessing(side: int) -> Preprocessing:
    return Preprocessing(IMAGENET_MEAN, IMAGENET_STD, resize=side, crop=side)


DCAP = ZooModel(
    name="dcap",
    build=dcap,
    weights=seeded_dcap_weights,
    weights_package=None,
    weights_origin=WeightsOrigin.SEEDED,
    task=Task.EMBEDDING,
    inputs=(InputSpec("image", (1, 3, _SIDE, _SIDE)),),
    preprocessing=_preprocessing(_SIDE),
    num_classes=None,
    description="DCAP few-shot embedding, the paper's ResNet-12; random weights, for size and "
    "speed",
)
DCAP_SMALL = ZooModel(
    name="dcap_small",
    build=dcap_small,
    weights=load_dcap_small_weights,
    weights_package=None,
    weights_origin=WeightsOrigin.TRAINED,
    task=Task.EMBEDDING,
    inputs=(InputSpec("image", (1, 3, _SMALL_SIDE, _SMALL_SIDE)),),
    preprocessing=_preprocessing(_SMALL_SIDE),
    num_classes=None,
    description="DCAP few-shot embedding, small, trained here on drawn shapes",
)
