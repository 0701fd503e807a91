"""Views of images: the window, its places, and the networks that take one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.calibration import _views
from edgekit.calibration._views import view, window_of
from edgekit.capture import CapturedModel, capture
from edgekit.types import InputSpec

WINDOW = 8


@pytest.fixture
def small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_views, "WINDOW", WINDOW)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(height: int, width: int) -> Tensor:
    """One image whose pixels are all different."""
    return torch.arange(float(height * width)).reshape(1, 1, height, width)


def test_window_is_a_part_of_the_image_or_of_its_mirror() -> None:
    image, generator = images(12, 15), draws()
    candidates = {
        tuple(x[0, 0, top : top + 8, left : left + 6].flatten().tolist())
        for x in (image, image.flip(3))
        for top in range(12 - 8 + 1)
        for left in range(15 - 6 + 1)
    }
    seen = set()
    for _ in range(300):
        (part,) = view([image], (8, 6), generator)
        assert part.shape == (1, 1, 8, 6)
        seen.add(tuple(part.flatten().tolist()))
    assert seen <= candidates
    mirrored = sum(part[0] > part[1] for part in seen)
    assert 0 < mirrored < len(seen)


@pytest.mark.parametrize("size", [(12, 12), (13, 20), (40, 15)])
def test_window_covers_the_border_as_often_as_the_middle(size: tuple[int, int]) -> None:
    counts, generator, rounds = torch.zeros(size), draws(), 1200
    image = images(*size)
    for _ in range(rounds):
        (part,) = view([image], (8, 8), generator)
        counts.view(-1)[part.flatten().long()] += 1
    mean = rounds * 64 / (size[0] * size[1])
    corner = min(counts[0, 0], counts[0, -1], counts[-1, 0], counts[-1, -1])
    # a corner of 12 x 12 is in (5 / 13)^2 of all windows, the average pixel in 64 / 144: a third;
    # without moving in from outside it would be in (1 / 5)^2, a tenth of the average or less
    assert float(corner) > mean / 5
    assert float(counts.max()) < 3 * mean


def test_inputs_stay_whole_without_a_window() -> None:
    signals = [images(9, 7), torch.randn(2, 3, 9), torch.randn(2, 5)]
    seen = view(signals, None, draws())
    assert all(found is given for found, given in zip(seen, signals, strict=True))


def test_view_is_differentiable() -> None:
    image = images(12, 12).requires_grad_()
    (part,) = view([image], (8, 8), draws())
    part.sum().backward()
    assert image.grad is not None
    assert float(image.grad.sum()) == 64


def conv() -> nn.Module:
    return nn.Conv2d(3, 4, 3, stride=2, padding=1)


class Flat(nn.Module):
    """Its linear layer fixes the size of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = conv(), nn.Linear(4 * 8 * 8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).flatten(1))


class Positions(nn.Module):
    """One output for each position: the outputs of a smaller image mean something else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x)).mean(1).flatten(1)


def image_network(module: nn.Module, shape: tuple[int, ...] = (1, 3, 16, 16)) -> CapturedModel:
    return capture(module, [InputSpec("x", shape)])


def pooled() -> nn.Module:
    return nn.Sequential(conv(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.usefixtures("small_window")
def test_window_of_networks_that_take_one() -> None:
    assert window_of(image_network(pooled())) == (8, 8)
    assert window_of(image_network(pooled(), (1, 3, 10, 30))) == (8, 8)
    assert window_of(image_network(conv())) == (8, 8)  # a map of another size is still a map


@pytest.mark.usefixtures("small_window")
def test_no_window_where_the_size_is_fixed_or_saves_little() -> None:
    assert window_of(image_network(Flat())) is None
    assert window_of(image_network(Positions())) is None
    assert window_of(image_network(pooled(), (1, 3, 9, 30))) is None
    assert window_of(capture(nn.Linear(16, 2), [InputSpec("x", (1, 16))])) is None
    assert window_of(capture(nn.Conv1d(3, 4, 3), [InputSpec("x", (1, 3, 30))])) is None
