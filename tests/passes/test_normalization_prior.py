"""Bounds from stored normalization parameters, against values computed by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.capture import CapturedModel, capture
from edgekit.observe import observe
from edgekit.passes.normalization_prior import SPREADS, with_normalization_prior
from edgekit.quant.statistics import Statistics
from edgekit.types import InputSpec

GAMMA, BETA = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 1.0, -4.0])
# beta +- 6 |gamma|: [-6, 6], [-11, 13], [-7, -1]
LOW, HIGH = -11.0, 13.0


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.plain = nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False)
        self.norm.weight.data.copy_(GAMMA)
        self.norm.bias.data.copy_(BETA)
        self.conv = nn.Conv2d(3, 3, 1)


class Passing(Norms):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.norm(x)
        return (
            F.relu(y), F.relu6(y), F.max_pool2d(y, 2), F.avg_pool2d(y, 2), y.flatten(1),
            F.pad(F.relu(y) + 1, (1, 1)), F.pad(y, (1, 1)), y + F.relu(y), torch.sigmoid(y),
            self.conv(y), self.plain(x), y + x,
        )  # fmt: skip


def priors(module: nn.Module, *shape: int) -> dict[str, tuple[float, float] | None]:
    model = capture(module, [InputSpec("x", (1, *shape))])
    found = with_normalization_prior(model, statistics_of(model))
    return {name: tensor.prior for name, tensor in found.tensors.items()}


def statistics_of(model: CapturedModel) -> Statistics:
    x = torch.randn(4, *model.inputs[0].shape[1:])
    return observe(model, [(x,)], method="m", generator=torch.Generator())


def test_bounds_pass_through_what_keeps_them() -> None:
    assert SPREADS == 6.0
    found = priors(Passing(), 3, 4, 4)
    assert found["batch_norm"] == (LOW, HIGH)
    assert found["relu"] == (0.0, HIGH)
    assert found["relu6"] == (0.0, 6.0)
    (average,) = (name for name in found if name.startswith("avg_pool2d"))
    for name in ("max_pool2d", average, "flatten", "pad_1"):
        assert found[name] == (LOW, HIGH), name
    (total,) = (name for name in ("add_1",) if name in found)
    assert found[total] == (LOW, 2 * HIGH)
    for name in ("x", "add", "pad", "sigmoid", "conv2d", "batch_norm_1", "add_2"):
        assert found[name] is None, name


def test_padding_widens_to_zero() -> None:
    class Shifted(Norms):
        def forward(self, x: Tensor) -> Tensor:
            return F.pad(self.norm(x), (1, 1))

    module = Shifted()
    module.norm.bias.data.fill_(100.0)
    found = priors(module, 3, 4, 4)
    assert found["batch_norm"] == (88.0, 112.0)
    assert found["pad"] == (0.0, 112.0)


def test_statistics_are_otherwise_kept() -> None:
    model = capture(Passing(), [InputSpec("x", (1, 3, 4, 4))])
    before = statistics_of(model)
    after = with_normalization_prior(model, before)
    for name, tensor in before.tensors.items():
        assert tensor.prior is None
        assert after.tensors[name].values is tensor.values
        assert after.tensors[name].maximum == tensor.maximum


def norm_of(kind: str) -> nn.Module:
    made: dict[str, nn.Module] = {
        "batch_norm": nn.BatchNorm2d(3),
        "group_norm": nn.GroupNorm(1, 3),
        "instance_norm": nn.InstanceNorm2d(3, affine=True),
        "instance_norm, stored": nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
        "layer_norm": nn.LayerNorm(3),
    }
    norm = made[kind]
    norm.weight.data.copy_(GAMMA)  # type: ignore[union-attr, operator]
    norm.bias.data.copy_(BETA)  # type: ignore[union-attr, operator]
    return norm


@pytest.mark.parametrize(
    ("kind", "shape", "count"),
    [
        ("batch_norm", (3, 4, 4), 37),  # 6 spreads, which is sqrt(37 - 1)
        ("instance_norm, stored", (3, 4, 4), 37),
        ("group_norm", (3, 4, 4), 48),
        ("instance_norm", (3, 5, 5), 25),
        ("layer_norm", (7, 3), 3),
    ],
)
def test_spread_of_each_normalization(kind: str, shape: tuple[int, ...], count: int) -> None:
    spread = GAMMA.abs() * (count - 1) ** 0.5
    found = priors(nn.Sequential(norm_of(kind)), *shape)[kind.split(",")[0]]
    expected = (float((BETA - spread).min()), float((BETA + spread).max()))
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["group_norm", "instance_norm", "layer_norm"])
def test_no_input_leaves_the_bounds(kind: str) -> None:
    # One value far away from all others, which are alike, is as far out as a value can be.
    module = nn.Sequential(norm_of(kind))
    found = priors(module, 3, 5, 3)[kind]
    assert found is not None
    x = torch.zeros(6, 3, 5, 3)
    for index, (channel, value) in enumerate([(c, v) for c in range(3) for v in (-1e6, 1e6)]):
        x[index, channel, 2, channel] = value
    y = module(x).detach()
    slack = 1e-4 * (found[1] - found[0])  # float32, and eps
    assert found[0] - slack <= float(y.min()) <= found[0] + slack
    assert found[1] - slack <= float(y.max()) <= found[1] + slack


def test_varying_size_has_no_bound() -> None:
    module = nn.Sequential(norm_of("instance_norm"))
    model = capture(module, [InputSpec("x", (1, 3, 8, 8), variable_axes=(2, 3))])
    found = with_normalization_prior(model, statistics_of(model))
    assert found.tensors["instance_norm"].prior is None


@pytest.mark.parametrize(
    ("alpha", "low", "high"),
    [(2.0, LOW + 2 * 0.0, HIGH + 2 * HIGH), (-0.5, LOW - 0.5 * HIGH, HIGH)],
)
def test_sum_with_a_factor(alpha: float, low: float, high: float) -> None:
    class Sum(Norms):
        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            return torch.add(y, F.relu(y), alpha=alpha)

    assert priors(Sum(), 3, 4, 4)["add"] == (low, high)


def test_mean_may_count_zeros_around_the_border() -> None:
    class Pooled(Norms):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.norm(x)
            return F.avg_pool2d(y, 3, padding=1), F.avg_pool2d(y, 2, divisor_override=1)

    module = Pooled()
    module.norm.bias.data.fill_(100.0)
    found = [
        prior for name, prior in priors(module, 3, 4, 4).items() if name.startswith("avg_pool2d")
    ]
    assert found == [(0.0, 112.0), None]


def test_rule_tells_what_set_each_range() -> None:
    class Network(Norms):
        def forward(self, x: Tensor) -> Tensor:
            y = F.relu6(self.norm(self.conv(x)))
            y = F.sigmoid(y)
            y = self.plain(self.conv(y))
            return self.conv(torch.tanh(y)).mean((2, 3))

    module = Network()
    module.norm.weight.data.fill_(0.01)
    module.norm.bias.data.fill_(0.0)
    module.norm.running_var.fill_(1e-4)  # type: ignore[union-attr, operator]
    model = capture(module, [InputSpec("x", (1, 3, 4, 4))])
    found = with_normalization_prior(model, statistics_of(model)).tensors
    assert found["x"].rule == "m"
    assert found["sigmoid"].rule == "m"  # a normalization comes after it
    # what goes in spreads a hundred times as wide as the BatchNorm says
    assert found["batch_norm"].rule == "m, cut to what BatchNorm stores"
    assert found["relu6"].rule == "m, cut to what BatchNorm stores"
    assert found["tanh"].rule == "m, behind the last normalization"
    (last,) = (name for name in found if name.startswith("mean"))
    assert found[last].rule == "m, behind the last normalization"


def test_rule_names_every_normalization_of_a_sum() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.batch, self.group = norm_of("batch_norm"), norm_of("group_norm")

        def forward(self, x: Tensor) -> Tensor:
            return self.batch(x) + self.group(x)

    model = capture(Sum(), [InputSpec("x", (1, 3, 4, 4))])
    found = with_normalization_prior(model, statistics_of(model)).tensors
    assert found["group_norm"].rule == "m, within what GroupNorm stores"
    assert found["add"].rule == "m, within what BatchNorm and GroupNorm store"


def test_network_without_normalization() -> None:
    model = capture(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()), [InputSpec("x", (1, 3, 4, 4))])
    found = with_normalization_prior(model, statistics_of(model)).tensors
    assert {tensor.rule for tensor in found.values()} == {"m"}
