"""The frozen network with its moments, against hooks of the module itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.calibration import _teacher
from edgekit.calibration._teacher import Moments, Teacher
from edgekit.capture import capture
from edgekit.types import InputSpec


class Network(nn.Module):
    """BatchNorms of maps and of vectors, one of them in a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.side, self.side_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.hidden, self.last_norm = nn.Linear(4, 6), nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.norm(self.conv(x)))
        x = x + self.side_norm(self.side(x))
        features = F.relu(self.last_norm(self.hidden(x.mean((2, 3)))))
        return self.head(features), x


@pytest.fixture
def module() -> Network:
    torch.manual_seed(0)
    network = Network()
    for _ in range(3):
        network(torch.randn(8, 2, 9, 7))
    return network.eval()


def teacher_of(module: nn.Module, shape: tuple[int, ...] = (1, 2, 9, 7)) -> Teacher:
    return Teacher(capture(module, [InputSpec("x", shape)]))


def test_outputs_and_features_are_the_modules(module: Network) -> None:
    x = torch.randn(5, 2, 9, 7)
    seen = teacher_of(module)(x)
    kept: list[Tensor] = []
    module.head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    for found, expected in zip(seen.outputs, module(x), strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(seen.features, kept[0])


def test_moments_are_those_of_each_norms_input(module: Network) -> None:
    x = torch.randn(5, 2, 9, 7)
    teacher = teacher_of(module)
    inputs: list[Tensor] = []
    norms = [module.norm, module.side_norm, module.last_norm]
    for norm in norms:
        norm.register_forward_pre_hook(lambda _, seen: inputs.append(seen[0].detach()))
    seen = teacher(x).moments
    module(x)
    assert len(seen) == len(teacher.norms) == len(norms)
    for moments, layer, norm, value in zip(seen, teacher.norms, norms, inputs, strict=True):
        assert torch.equal(layer.mean, norm.running_mean)  # type: ignore[arg-type]
        assert torch.equal(layer.variance, norm.running_var)  # type: ignore[arg-type]
        maps = value.flatten(2) if value.dim() > 2 else value[:, :, None]
        torch.testing.assert_close(moments.first, maps.mean(2))
        torch.testing.assert_close(moments.second, maps.square().mean(2))
        mean, variance = moments.pooled()
        values = maps.transpose(0, 1).flatten(1)
        torch.testing.assert_close(mean, values.mean(1))
        torch.testing.assert_close(variance, values.var(1, unbiased=False))


def test_gradient_goes_to_the_inputs_and_not_to_parameters(module: Network) -> None:
    x = torch.randn(2, 2, 9, 7, requires_grad=True)
    moments = teacher_of(module)(x).moments
    torch.stack([part.second.sum() for part in moments]).sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().min()) > 0
    assert all(parameter.grad is None for parameter in module.parameters())


def test_network_without_linear_layer_has_its_output_as_features() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).eval()
    seen = teacher_of(network)(torch.randn(4, 2, 9, 7))
    assert torch.equal(seen.features, seen.outputs[0].flatten(1))


def test_pooled_moments_of_constant_samples() -> None:
    moments = Moments(torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0], [9.0]]))
    mean, variance = moments.pooled()
    assert (mean.tolist(), variance.tolist()) == ([2.0], [1.0])  # between samples, too


# -- swing --------------------------------------------------------------------------------------


def test_swing_keeps_every_shape(module: Network) -> None:
    x = torch.randn(4, 2, 9, 7)
    teacher = teacher_of(module)
    plain = teacher(x)
    generator = torch.Generator().manual_seed(0)
    moved = False
    for _ in range(6):
        seen = teacher(x, swing=generator)
        assert [v.shape for v in seen.outputs] == [v.shape for v in plain.outputs]
        assert [m.first.shape for m in seen.moments] == [m.first.shape for m in plain.moments]
        moved |= not torch.equal(seen.outputs[0], plain.outputs[0])
    assert moved


def test_swing_shifts_by_one_pixel_at_most_and_reflects() -> None:
    x = torch.arange(30.0).reshape(1, 1, 5, 6)
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    windows = [padded[:, :, i : i + 5, j : j + 6] for i in range(3) for j in range(3)]
    generator = torch.Generator().manual_seed(0)
    found = set()
    for _ in range(100):
        shifted = _teacher._shifted(x, generator)
        found |= {i for i, window in enumerate(windows) if torch.equal(shifted, window)}
    assert found == set(range(9))


def test_swing_leaves_other_convolutions_alone() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)).eval()
    x = torch.randn(2, 2, 6, 6)
    teacher = teacher_of(network, (1, 2, 6, 6))
    swung = teacher(x, swing=torch.Generator().manual_seed(0))
    assert torch.equal(swung.outputs[0], teacher(x).outputs[0])
