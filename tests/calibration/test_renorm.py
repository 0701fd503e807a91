"""renorm: what BatchNorm's stored parameters promise holds on random inputs, at every depth."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.calibration.renorm import Renorm
from edgekit.capture import CapturedModel, capture
from edgekit.observe import observe
from edgekit.quant.statistics import Statistics
from edgekit.signals import random_batches
from edgekit.types import InputSpec


class Deep(nn.Module):
    """Stored statistics that random inputs do not have, and a pooling behind the last norm."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 3, padding=1, bias=False) for i, o in ((3, 8), (8, 8), (8, 8))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.head = nn.Linear(8, 4)
        generator = torch.Generator().manual_seed(1)
        for norm in self.norms:
            norm.running_mean.normal_(0, 3, generator=generator)
            norm.running_var.uniform_(0.01, 30, generator=generator)
            nn.init.uniform_(norm.weight, -2, 2, generator=generator)
            nn.init.normal_(norm.bias, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def module() -> Deep:
    torch.manual_seed(0)
    return Deep().eval()


@pytest.fixture(scope="module")
def model(module: Deep) -> CapturedModel:
    return capture(module, [InputSpec("x", (1, 3, 16, 16))])


@pytest.fixture(scope="module")
def statistics(model: CapturedModel) -> Statistics:
    return Renorm(samples=64, batch=64).observe(model)


def test_every_norm_has_its_stored_mean_and_spread(module: Deep, statistics: Statistics) -> None:
    for index, norm in enumerate(module.norms):
        found = statistics.tensors["batch_norm" if index == 0 else f"batch_norm_{index}"]
        # exact up to float32, over one batch; eps is 1e-5 of variances near 1
        assert torch.allclose(found.channel_mean, norm.bias, atol=2e-4)
        spread = torch.stack([found.values[found.channels == c].std() for c in range(8)])
        # a sample of 131,072 / 8 values of each channel: standard error 0.6 %, four times that
        assert torch.allclose(spread, norm.weight.abs(), rtol=0.025, atol=1e-3)


def test_evaluation_mode_would_not_have_them(module: Deep, model: CapturedModel) -> None:
    generator = torch.Generator().manual_seed(0)
    plain = observe(
        model, random_batches(model, 64, 64, generator), method="plain", generator=generator
    )
    found = plain.tensors["batch_norm_2"].channel_mean
    assert not torch.allclose(found, module.norms[2].bias, atol=0.1)


def test_network_is_unchanged_afterwards(module: Deep, model: CapturedModel) -> None:
    x = torch.randn(2, 3, 16, 16)
    stored = {name: value.clone() for name, value in model.graph.state_dict().items()}
    before = model(x)[0]
    Renorm(samples=8, batch=8).observe(model)
    assert torch.equal(model(x)[0], before)
    assert torch.allclose(module(x), before, atol=1e-5)
    assert all(torch.equal(model.graph.state_dict()[name], v) for name, v in stored.items())


def test_pooling_behind_the_last_norm_takes_one_position(
    model: CapturedModel, statistics: Statistics
) -> None:
    pooled = next(s for n, s in statistics.tensors.items() if n.startswith("mean"))
    source = statistics.tensors["relu_2"]
    # a position is drawn for each of 64 images: the means agree within four standard errors
    spread = torch.stack([source.values[source.channels == c].std() for c in range(8)])
    assert bool(((pooled.channel_mean - source.channel_mean).abs() <= 4 * spread / 8).all())
    generator = torch.Generator().manual_seed(0)
    plain = observe(
        model, random_batches(model, 64, 64, generator), method="plain", generator=generator
    )
    mean = next(s for n, s in plain.tensors.items() if n.startswith("mean"))
    width = lambda s: float((s.channel_maximum - s.channel_minimum).mean())  # noqa: E731
    relative = width(pooled) / width(source)
    assert relative > 3 * width(mean) / width(plain.tensors["relu_2"])
    assert relative <= 1.0


def test_pooling_before_a_norm_is_left_alone() -> None:
    class Gate(nn.Module):
        """Squeeze and excitation between two norms."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.second(x * x.mean((2, 3), keepdim=True).sigmoid())

    model = capture(Gate(), [InputSpec("x", (1, 4, 16, 16))])
    found = Renorm(samples=32, batch=32).observe(model)
    # a true mean over 256 positions of a unit-spread tensor stays well inside its range
    inside = found.tensors["mean"].channel_maximum
    assert bool((inside < 0.7 * found.tensors["batch_norm"].channel_maximum).all())


def test_dead_channel_does_not_explode() -> None:
    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)
            with torch.no_grad():
                self.conv.weight[0] = 0.0  # constant on every input
                self.conv.weight[1] *= 1e-6  # nearly so
            self.norm.running_var.fill_(1.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x))

    model = capture(Dead(), [InputSpec("x", (1, 3, 8, 8))])
    found = Renorm(samples=8, batch=8).observe(model).tensors["batch_norm"]
    spread = torch.stack([found.values[found.channels == c].std() for c in range(4)])
    assert float(spread[0]) == 0.0
    assert float(spread[1]) < 1e-3  # and not 1, which would be rounding noise blown up
    assert torch.allclose(spread[2:], torch.ones(2), rtol=0.15)  # 512 values: 3 % each, five times


def test_single_value_for_each_channel_uses_the_stored_statistics() -> None:
    class FixedBatch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Linear(6, 5), nn.BatchNorm1d(5)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.first(x.view(1, 6)))

    model = capture(FixedBatch(), [InputSpec("x", (1, 2, 3))])
    assert not model.batch
    found = Renorm(samples=32).observe(model)
    # batch statistics of one value would make the output constant
    assert bool((found.tensors["batch_norm"].channel_maximum > 0.1).all())


def test_only_a_network_without_norm_is_noted(statistics: Statistics) -> None:
    assert statistics.notes == ()
    model = capture(nn.Conv2d(3, 2, 3), [InputSpec("x", (1, 3, 8, 8))])
    (note,) = Renorm(samples=4).observe(model).notes
    assert "no BatchNorm" in note


def test_norms_of_all_ranks() -> None:
    for norm, shape in ((nn.BatchNorm1d(4), (4,)), (nn.BatchNorm1d(4), (4, 20))):
        nn.init.constant_(norm.weight, 3.0)
        nn.init.constant_(norm.bias, -2.0)
        model = capture(nn.Sequential(norm), [InputSpec("x", (1, *shape))])
        found = Renorm(samples=64, batch=64).observe(model).tensors["batch_norm"]
        assert torch.allclose(found.channel_mean, torch.full((4,), -2.0), atol=1e-4)
        # all samples are kept, so only the divisor n - 1 in place of n differs: 1 % of 64
        assert float(found.values.std()) == pytest.approx(3.0, rel=0.01)


def test_seed_and_counts(model: CapturedModel, statistics: Statistics) -> None:
    assert (statistics.method, statistics.samples) == ("renorm", 64)
    assert {tensor.rule for tensor in statistics.tensors.values()} == {"renorm"}
    again = Renorm(samples=64, batch=64).observe(model)
    other = Renorm(samples=64, batch=64, seed=1).observe(model)
    for name, tensor in statistics.tensors.items():
        assert torch.equal(tensor.values, again.tensors[name].values)
        assert tensor.maximum == again.tensors[name].maximum
    assert other.tensors["x"].maximum != statistics.tensors["x"].maximum


def test_progress_ends_at_one(model: CapturedModel) -> None:
    seen: list[float] = []
    Renorm(samples=24, batch=8).observe(model, progress=lambda _stage, done: seen.append(done))
    assert seen == pytest.approx([1 / 3, 2 / 3, 1.0])


def test_second_moments_are_those_of_the_altered_pass(model: CapturedModel) -> None:
    found = Renorm(samples=16, batch=16).observe(model, second_moments=["conv2d_1", "linear"])
    assert {name: tuple(m.shape) for name, m in found.second_moments.items()} == {
        "conv2d_1": (1, 72, 72),
        "linear": (1, 8, 8),
    }
    for moment in found.second_moments.values():
        # symmetric, and no direction has negative energy beyond float32 rounding
        assert torch.allclose(moment, moment.transpose(1, 2), atol=1e-5)
        assert float(torch.linalg.eigvalsh(moment).min()) > -1e-4
