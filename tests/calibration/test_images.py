"""The upper control: real images, preprocessed as stated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit.calibration.images import ImageFolder
from edgekit.capture import capture
from edgekit.errors import CalibrationError
from edgekit.types import InputSpec, Preprocessing

cv2 = pytest.importorskip("cv2", reason="images are decoded by OpenCV")

PRE = Preprocessing((0.5,), (0.25,), resize=8, crop=8)
IMAGE = InputSpec("image", (1, 3, 8, 8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six plain images of brightness 0, 51, ..., 255."""
    for index in range(6):
        pixels = np.full((8, 8, 3), 51 * index, np.uint8)
        assert cv2.imwrite(str(tmp_path / f"{index}_plain.png"), pixels)
    return tmp_path


class Brightness(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def test_images_are_what_the_network_sees(folder: Path) -> None:
    model = capture(Brightness(), [IMAGE], preprocessing=PRE)
    found = ImageFolder(folder, samples=6, batch=4).observe(model)  # batches of 4 and 2
    assert found.samples == 6
    tensor = found.tensors["x"]
    # (0.2 k - 0.5) / 0.25 for k = 0..5
    assert (tensor.minimum, tensor.maximum) == pytest.approx((-2.0, 2.0))
    assert tensor.channel_mean.tolist() == pytest.approx([0.0] * 3, abs=1e-6)
    assert found.notes == ("control: calibrated on 6 real images, so not data-free",)
    assert found.method == "images"


def test_seed_draws_the_files(folder: Path) -> None:
    model = capture(Brightness(), [IMAGE], preprocessing=PRE)
    drawn = [ImageFolder(folder, samples=2, seed=seed).observe(model) for seed in (0, 0, 1, 2, 3)]
    ranges = [(s.tensors["x"].minimum, s.tensors["x"].maximum) for s in drawn]
    assert ranges[0] == ranges[1]
    assert len(set(ranges)) > 1


def test_fixed_batch_sees_one_image_at_a_time(folder: Path) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(192, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.view(1, 192))

    model = capture(Flat(), [IMAGE], preprocessing=PRE)
    seen: list[float] = []
    found = ImageFolder(folder, samples=3).observe(
        model, progress=lambda _stage, done: seen.append(done)
    )
    assert found.samples == 3
    assert seen == pytest.approx([1 / 3, 2 / 3, 1.0])


def test_network_without_an_image_input_is_refused(folder: Path) -> None:
    model = capture(nn.Linear(4, 2), [InputSpec("x", (1, 4))])
    with pytest.raises(CalibrationError, match="one image input"):
        ImageFolder(folder).observe(model)


def test_unknown_preprocessing_is_refused(folder: Path) -> None:
    model = capture(Brightness(), [IMAGE])
    with pytest.raises(CalibrationError, match="how an image becomes"):
        ImageFolder(folder).observe(model)


def test_graph_is_left_alone(folder: Path) -> None:
    model = capture(Brightness(), [IMAGE], preprocessing=PRE)
    x = torch.randn(2, 3, 8, 8)
    before = model(x)[0]
    ImageFolder(folder).observe(model)
    assert torch.equal(model(x)[0], before)
