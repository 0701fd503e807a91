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
    for name in ("max_pool2d", "avg_pool2d", "flatten", "pad_1"):
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


@pytest.mark.parametrize(
    ("norm", "node"),
    [(nn.BatchNorm2d(3), "batch_norm"), (nn.GroupNorm(1, 3), "group_norm")],
)
def test_parameters_are_found(norm: nn.Module, node: str) -> None:
    norm.weight.data.copy_(GAMMA)  # type: ignore[union-attr]
    norm.bias.data.copy_(BETA)  # type: ignore[union-attr]
    assert priors(nn.Sequential(norm), 3, 4, 4)[node] == (LOW, HIGH)
