"""Between unit-spread signals and network inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgekit.calibration._space import InputSpace
from edgekit.capture import CapturedModel, capture
from edgekit.errors import CalibrationError
from edgekit.types import InputSpec, Preprocessing

UNEVEN = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.25, 0.5))


def image_network(preprocessing: Preprocessing | None) -> CapturedModel:
    return capture(nn.Conv2d(3, 2, 3), [InputSpec("x", (1, 3, 8, 8))], preprocessing=preprocessing)


class Three(nn.Module):
    def forward(self, image: Tensor, ids: Tensor, vector: Tensor) -> Tensor:
        return image.mean((1, 2, 3)) + ids + vector.sum(1)


def test_domain_is_what_preprocessing_can_produce() -> None:
    space = InputSpace.of(image_network(UNEVEN))
    # pixels 0 and 1 of the channel that reaches furthest
    low, high = (0 - 0.5) / 0.2, (1 - 0.5) / 0.2
    far = space.to_domain(0, torch.tensor([-50.0, 0.0, 50.0]))
    torch.testing.assert_close(far, torch.tensor([low, (low + high) / 2, high]))
    # natural pixels spread over 0.27 of their range: one unit of the signal
    one = float(space.to_domain(0, torch.tensor(1.0)))
    assert one == pytest.approx((low + high) / 2 + 0.27 * (high - low))


def test_signal_is_the_inverse_inside_the_domain() -> None:
    space = InputSpace.of(image_network(UNEVEN))
    signal = torch.linspace(-1.8, 1.8, 50)  # 0.5 / 0.27 is the border
    back = space.to_signal(0, space.to_domain(0, signal))
    torch.testing.assert_close(back, signal, rtol=0, atol=1e-6)  # a few roundings of 2


def test_unknown_domain_changes_nothing() -> None:
    space = InputSpace.of(image_network(None))
    signal = torch.tensor([-50.0, 50.0])
    assert space.to_domain(0, signal) is signal
    assert space.to_signal(0, signal) is signal


def test_gradient_passes_inside_the_domain_alone() -> None:
    space = InputSpace.of(image_network(UNEVEN))
    signal = torch.tensor([0.5, 9.0], requires_grad=True)
    space.to_domain(0, signal).sum().backward()
    assert signal.grad is not None
    assert float(signal.grad[0]) > 0
    assert float(signal.grad[1]) == 0


def test_only_float_inputs_are_shaped() -> None:
    specs = [
        InputSpec("image", (1, 3, 4, 4)),
        InputSpec("ids", (1,), "int64"),
        InputSpec("vector", (1, 5)),
    ]
    space = InputSpace.of(capture(Three(), specs))
    assert space.shaped == (0, 2)
    assert space.sizes() == ((3, 4, 4), (5,))
    drawn = space.drawn(6, torch.Generator().manual_seed(0))
    assert [tuple(value.shape) for value in drawn] == [(6, 3, 4, 4), (6,), (6, 5)]
    signals = [torch.zeros(6, 3, 4, 4), torch.ones(6, 5)]
    image, ids, vector = space.complete(signals, drawn)
    assert torch.equal(image, signals[0])
    assert ids is drawn[1]
    assert torch.equal(vector, signals[1])


def test_network_without_float_input_is_refused() -> None:
    model = capture(nn.Embedding(5, 3), [InputSpec("ids", (1, 4), "int64")])
    with pytest.raises(CalibrationError, match="no float input") as caught:
        InputSpace.of(model)
    assert "renorm" in caught.value.hint
