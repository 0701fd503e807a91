"""Folding against the network itself: same outputs, no BatchNorm left, input untouched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgekit.capture import CapturedModel, capture
from edgekit.graph import OpKind, op_kind
from edgekit.observe import observe
from edgekit.passes.fold_batchnorm import fold_batchnorm
from edgekit.quant.statistics import Statistics
from edgekit.types import InputSpec

EMPTY = Statistics({}, "none", 0)


def randomize(module: nn.Module) -> nn.Module:
    """Give every BatchNorm statistics and parameters that matter."""
    generator = torch.Generator().manual_seed(1)
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_(generator=generator)
            norm.running_var.uniform_(0.1, 3.0, generator=generator)
            if norm.affine:
                nn.init.uniform_(norm.weight, -2.0, 2.0, generator=generator)
                nn.init.normal_(norm.bias, generator=generator)
    return module.eval()


def captured(module: nn.Module, *shape: int) -> CapturedModel:
    return capture(randomize(module), [InputSpec("x", (1, *shape))])


def norms(model: CapturedModel) -> list[str]:
    return [n.name for n in model.graph.graph.nodes if op_kind(n) is OpKind.BATCH_NORM]


def assert_same_outputs(before: CapturedModel, after: CapturedModel, *shape: int) -> None:
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(2))
    for a, b in zip(before(x), after(x), strict=True):
        # weights are folded in float64 and rounded once, 6e-8 each; sums of up to 200 products
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(a.abs().max()))


FOLDABLE = {
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)), (4, 9)),
    "conv2d": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), (4, 7, 8)),
    "no bias": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)),
        (4, 7, 8),
    ),
    "plain norm": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False)),
        (4, 7, 8),
    ),
    "groups": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6)),
        (4, 7, 8),
    ),
    "depthwise": (
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8)),
        (4, 7, 8),
    ),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4)), (2, 4, 4, 4)),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2), nn.BatchNorm2d(6)),
        (4, 5, 6),
    ),
    "transposed groups": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(6, 9, 3, stride=2, groups=3, bias=False), nn.BatchNorm2d(9)
        ),
        (6, 5, 6),
    ),
    "transposed 1d": (
        lambda: nn.Sequential(nn.ConvTranspose1d(4, 6, 4, stride=2, groups=2), nn.BatchNorm1d(6)),
        (4, 9),
    ),
    "linear": (lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), (4,)),
    "linear no bias": (lambda: nn.Sequential(nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6)), (4,)),
}


@pytest.mark.parametrize("name", FOLDABLE)
def test_outputs_stay_and_the_norm_is_gone(name: str) -> None:
    build, shape = FOLDABLE[name]
    model = captured(build(), *shape)
    stored = {key: value.clone() for key, value in model.graph.state_dict().items()}
    code = model.graph.code
    folded, _ = fold_batchnorm(model, EMPTY)
    assert norms(folded) == []
    assert_same_outputs(model, folded, *shape)
    assert norms(model) == ["batch_norm"], "the input was changed"
    assert model.graph.code == code
    assert all(torch.equal(model.graph.state_dict()[key], value) for key, value in stored.items())


class SharedWeight(nn.Module):
    """One convolution before two BatchNorms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.conv(self.first(self.conv(x)).relu()))


class SharedThrice(SharedWeight):
    """The third use of the convolution has no BatchNorm and must keep the weight."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(super().forward(x))


@pytest.mark.parametrize("build", [SharedWeight, SharedThrice])
def test_shared_weight_is_copied_for_each_norm(build: type[nn.Module]) -> None:
    model = captured(build(), 4, 6, 6)
    folded, _ = fold_batchnorm(model, EMPTY)
    assert norms(folded) == []
    assert_same_outputs(model, folded, 4, 6, 6)


class NormAfterSum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x) + x)


class NormBesideReader(NormAfterSum):
    """Something else reads the convolution too."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class NormOverTokens(nn.Module):
    """BatchNorm over axis 1 of [N, T, F]: not the linear layer's features."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(5, 6), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x))


class NormOfComputedWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight / x.square().mean()
        return self.norm(nn.functional.conv2d(x, weight))


class NormOnInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x))


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (NormAfterSum, (4, 6, 6)),
        (NormBesideReader, (4, 6, 6)),
        (NormOverTokens, (3, 5)),
        (NormOfComputedWeight, (4, 6, 6)),
        (NormOnInput, (4, 6, 6)),
    ],
)
def test_norm_that_cannot_be_folded_stays(build: type[nn.Module], shape: tuple[int, ...]) -> None:
    model = captured(build(), *shape)
    folded, _ = fold_batchnorm(model, EMPTY)
    assert norms(folded) == ["batch_norm"]
    assert_same_outputs(model, folded, *shape)


def test_statistics_of_the_norm_become_those_of_the_layer() -> None:
    norm = nn.BatchNorm2d(6)
    model = captured(nn.Sequential(nn.Conv2d(4, 6, 3), norm, nn.ReLU()), 4, 7, 8)
    x = torch.randn(5, 4, 7, 8, generator=torch.Generator().manual_seed(3))
    statistics = observe(model, [(x,)], method="test", generator=torch.Generator())
    (image,) = (node.name for node in model.graph.graph.find_nodes(op="placeholder"))
    assert set(statistics.tensors) == {image, "batch_norm", "relu"}
    folded, renamed = fold_batchnorm(model, statistics)
    assert set(renamed.tensors) == {image, "conv2d", "relu"}
    before, after = statistics.tensors["batch_norm"], renamed.tensors["conv2d"]
    assert after.values is before.values
    assert norm.running_var is not None
    expected = norm.weight.abs() * (norm.running_var / (norm.running_var + norm.eps)).sqrt()
    assert after.stored is not None
    torch.testing.assert_close(after.stored[0], norm.bias.detach())
    torch.testing.assert_close(after.stored[1], expected.detach())
    assert set(statistics.tensors) == {image, "batch_norm", "relu"}
    # what the new name means in the folded network is what was observed under the old one
    again = observe(folded, [(x,)], method="test", generator=torch.Generator())
    assert again.tensors["conv2d"].maximum == pytest.approx(
        renamed.tensors["conv2d"].maximum, rel=1e-5
    )


def test_every_tensor_of_the_folded_network_has_statistics() -> None:
    for build, shape in ((NormAfterSum, (4, 6, 6)), (NormBesideReader, (4, 6, 6))):
        model = captured(build(), *shape)
        x = torch.randn(2, *shape)
        statistics = observe(model, [(x,)], method="test", generator=torch.Generator())
        folded, renamed = fold_batchnorm(model, statistics)
        again = observe(folded, [(x,)], method="test", generator=torch.Generator())
        assert set(renamed.tensors) == set(again.tensors)
