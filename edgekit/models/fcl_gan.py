"""FCL-GAN: blind deblurring without pairs of blurred and sharp pictures.

Architecture: Zhao, Zhang, Hong, Xu, Yang and Wang, "FCL-GAN: A Lightweight and Real-Time Baseline
for Unsupervised Blind Image Deblurring" (ACM MM 2022, arXiv 2204.07820): a U-shaped generator with
narrow channels and a patch discriminator. Only a generator is exported; two of them and two
discriminators are trained together by ``edgekit.training.fcl_gan``.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.architecture import WeightsOrigin, ZooModel
from edgekit.procedural.camera_shake import shake, shake_kernel
from edgekit.procedural.scenes import draw_scene
from edgekit.types import InputSpec, Preprocessing, Task

from .batchnorm import recalibrate
from .shipped import shipped_weights

_SLOPE = 0.2  # of the discriminator's LeakyReLU
_SEED = 2022
_SEEDED_IMAGES, _SEEDED_SIDE = 8, 64
_RIDGE = 1e-5
_BRANCH = 0.1
_LAST_KNOT = 3.2  # logit of the hinge nearest to white
_LIFT = 3.0  # deviations by which the junction's ReLU is kept from cutting off what it hands on
_RANDOM_SHARE = 0.1


def _conv_bn(cin: int, cout: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(cout)
    )


class ResidualBlock(nn.Module):
    """``x + BN(Conv3(ReLU(BN(Conv3 x))))``, with nothing behind the sum.

    Shapes: ``[N, C, H, W]`` to the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _conv_bn(channels, channels, 3)
        self.second = _conv_bn(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(F.relu(self.first(x)))
        return out


class _Up(nn.Module):
    """Twice the height and width for half the channels, joined with what went down there.

    ``ReLU(BN(Conv1([ReLU(BN(ConvT4 x)) ; skip])))``: ``[N, 2C, H, W]`` to ``[N, C, 2H, 2W]``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(2 * channels, channels, 4, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.join = _conv_bn(2 * channels, channels, 1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.relu(self.norm(self.up(x)))
        out: Tensor = F.relu(self.join(torch.cat((x, skip), 1)))
        return out


class Generator(nn.Module):
    """Maps pictures of one domain to the other: blurred to sharp, or back.

    ``restored = sigmoid(head(u(image)) + image)``, where ``u`` is the U of ``width``, ``2 width``
    and ``4 width`` channels. With a head of zeros that is ``sigmoid(image)``, not ``image``: the
    head has to learn ``logit(image) - image``.

    Shapes: ``[N, 3, H, W]`` float32 in [0, 1] to ``{"restored": [N, 3, H, W]}`` in (0, 1); height
    and width are multiples of four.
    """

    def __init__(self, width: int = 24, blocks: int = 6) -> None:
        super().__init__()

        def stage(channels: int) -> nn.Sequential:
            return nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))

        self.stem = _conv_bn(3, width, 3)
        self.encode_1 = stage(width)
        self.down_1 = _conv_bn(width, 2 * width, 3, 2)
        self.encode_2 = stage(2 * width)
        self.down_2 = _conv_bn(2 * width, 4 * width, 3, 2)
        self.encode_3 = stage(4 * width)
        self.decode_3 = stage(4 * width)
        self.up_2 = _Up(2 * width)
        self.decode_2 = stage(2 * width)
        self.up_1 = _Up(width)
        self.decode_1 = stage(width)
        self.head = nn.Conv2d(width, 3, 3, 1, 1)

    def restore(self, image: Tensor) -> Tensor:
        """Return the picture of the other domain, ``[N, 3, H, W]`` in (0, 1)."""
        fine = self.encode_1(F.relu(self.stem(image)))
        middle = self.encode_2(F.relu(self.down_1(fine)))
        coarse = self.encode_3(F.relu(self.down_2(middle)))
        x = self.decode_2(self.up_2(self.decode_3(coarse), middle))
        x = self.decode_1(self.up_1(x, fine))
        return torch.sigmoid(self.head(x) + image)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"restored": self.restore(image)}


class PatchDiscriminator(nn.Module):
    """Scores how real each patch of a picture looks: ``[N, 3, H, W]`` to ``[N, 1, H/16, W/16]``.

    Four convolutions 4x4 of stride 2 with LeakyReLU(0.2), all but the first normalised for each
    picture by itself; then one of stride 1, padded on the left and at the top so that the size
    stays. Raw scores; the losses are least squares.
    """

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for index in range(4):
            wider = width << index
            layers.append(nn.Conv2d(channels, wider, 4, 2, 1))
            if index > 0:
                layers.append(nn.InstanceNorm2d(wider))
            layers.append(nn.LeakyReLU(_SLOPE))
            channels = wider
        self.layers = nn.Sequential(
            *layers, nn.ZeroPad2d((1, 0, 1, 0)), nn.Conv2d(channels, 1, 4, 1, 1)
        )

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.layers(image)
        return scores


def fcl_gan(width: int = 24, blocks: int = 6) -> Generator:
    """Build the generator of the paper (2,772,483 parameters, 391,248 products a pixel)."""
    return Generator(width, blocks)


def fcl_gan_small(width: int = 16, blocks: int = 1) -> Generator:
    """Build the generator that is trained here (262,275 parameters, 35,936 products a pixel)."""
    return Generator(width, blocks)


def seeded_fcl_gan_weights() -> dict[str, Tensor]:
    """Return random weights of the paper's generator that hand a picture back about as it is.

    The convolutions are as torch initialises them; the rest is :func:`start_as_identity` on drawn
    pictures, so that activations and outputs have the ranges of a network that runs on pictures.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        network = fcl_gan()
    start_as_identity(network, _drawn_pictures(_SEEDED_IMAGES, _SEEDED_SIDE), _BRANCH)
    return network.state_dict()


def start_as_identity(network: Generator, pictures: Tensor, branch: float = 0.02) -> None:
    """Make a network with fresh weights hand its picture back about as it is, without training.

    The stem gives hinges ``ReLU(colour - t)`` at several knots ``t``, which the last junction lets
    through, and residual branches start small. Sums of hinges approximate what the head owes,
    ``logit(image) - image``, so the head is solved for by least squares.

    Args:
        network: changed in place; it comes back in evaluation mode.
        pictures: ``[N, 3, H, W]`` float32 in [0, 1]; a few hundred thousand pixels suffice.
        branch: scale of the residual branches.
    """
    with torch.no_grad():
        _pass_colours_on(network)
        for block in network.modules():
            if isinstance(block, ResidualBlock):
                _norm(block.second).weight.fill_(branch)
        recalibrate(network, [pictures])
        _set_knots(_norm(network.stem))
    recalibrate(network, [pictures])
    _solve_head(network, pictures)


def _pass_colours_on(network: Generator) -> None:
    """Let the stem's channels hold one colour each, and the last junction hand them on."""
    stem, join = network.stem[0].weight, network.up_1.join[0].weight
    assert isinstance(stem, Tensor) and isinstance(join, Tensor)
    width = len(stem)
    stem.mul_(_RANDOM_SHARE)
    join.mul_(_RANDOM_SHARE)
    for channel in range(3 * (width // 3)):
        stem[channel, channel % 3, 1, 1] += 1.0
    for channel in range(width):
        join[channel, width + channel] += 1.0
    _norm(network.up_1.join).bias.fill_(_LIFT)


def _set_knots(stem: nn.BatchNorm2d) -> None:
    """Place the hinges: one at black, the others where the logit bends, denser at the ends."""
    each = stem.num_features // 3
    knots = [0.0, *torch.sigmoid(torch.linspace(-_LAST_KNOT, _LAST_KNOT, each - 1)).tolist()]
    assert stem.running_mean is not None and stem.running_var is not None
    deviation = (stem.running_var + stem.eps).sqrt()
    for channel in range(3 * each):
        mean = stem.running_mean[channel]
        stem.bias[channel] = (mean - knots[channel // 3]) / deviation[channel]


def _solve_head(network: Generator, pictures: Tensor) -> None:
    """Set the head to ``(F'F + r I)^-1 F't``: its inputs ``F``, what it owes ``t``.

    Rows are weighted by the slope of the sigmoid, so that errors count as they show.
    """
    wanted = torch.logit(pictures, eps=1.0 / 255.0) - pictures
    seen: list[Tensor] = []
    handle = network.head.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    with torch.no_grad():
        network.restore(pictures)
    handle.remove()
    slope = (pictures * (1.0 - pictures)).mean(1).clamp(min=1.0 / 255.0).double().reshape(-1, 1)
    patches = F.unfold(seen[0], 3, padding=1).transpose(1, 2).flatten(0, 1).double()
    patches = torch.cat((patches, torch.ones_like(patches[:, :1])), 1) * slope
    target = wanted.flatten(2).transpose(1, 2).flatten(0, 1).double() * slope
    gram = patches.T @ patches
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean())
    solved = torch.linalg.solve(gram, patches.T @ target).float()
    bias = network.head.bias
    assert bias is not None
    with torch.no_grad():
        network.head.weight.copy_(solved[:-1].T.reshape(network.head.weight.shape))
        bias.copy_(solved[-1])


def _norm(layers: nn.Sequential) -> nn.BatchNorm2d:
    norm = layers[1]
    assert isinstance(norm, nn.BatchNorm2d)
    return norm


def _drawn_pictures(count: int, side: int) -> Tensor:
    """Return blurred scenes ``[N, 3, side, side]`` float32 in [0, 1]."""
    pictures = []
    for index in range(count):
        rng = np.random.default_rng([_SEED, index])
        pictures.append(shake(draw_scene(rng, side), shake_kernel(rng, 7.0)))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255.0


def load_fcl_gan_small_weights() -> dict[str, Tensor]:
    """Read the weights that were trained here on drawn pictures."""
    return shipped_weights("fcl_gan_small")


_IMAGE = InputSpec("image", (1, 3, 256, 256), "float32", variable_axes=(2, 3), multiple=4)

FCL_GAN = ZooModel(
    name="fcl_gan",
    build=fcl_gan,
    weights=seeded_fcl_gan_weights,
    weights_package=None,
    weights_origin=WeightsOrigin.SEEDED,
    task=Task.IMAGE_TO_IMAGE,
    inputs=(_IMAGE,),
    preprocessing=Preprocessing(),
    num_classes=None,
    description="FCL-GAN deblurring, the paper's size; random weights, for size and speed",
)
FCL_GAN_SMALL = ZooModel(
    name="fcl_gan_small",
    build=fcl_gan_small,
    weights=load_fcl_gan_small_weights,
    weights_package=None,
    weights_origin=WeightsOrigin.TRAINED,
    task=Task.IMAGE_TO_IMAGE,
    inputs=(_IMAGE,),
    preprocessing=Preprocessing(),
    num_classes=None,
    description="FCL-GAN deblurring, small, trained here on drawn pictures, with pairs",
)
