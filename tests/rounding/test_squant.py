"""SQuant against exhaustive search on small channels, its bounds, and what networks gain by it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.quant.affine import quantize_weight
from edgekit.quantized import QuantizedModel, lower
from edgekit.rounding import round_weights
from edgekit.rounding.sequential import NEUTRAL
from edgekit.rounding.squant import cancel_errors, round_by_squant, squant
from edgekit.simulate import simulate
from edgekit.sites import Role, layer_name
from edgekit.types import Rounding

Quantize = Callable[..., QuantizedModel]

HALF = 0.5 + 1e-5  # sums of float32 numbers below 8


def drawn(*shape: int, seed: int, spread: float = 2.0) -> Tensor:
    """Weights in steps of a 4-bit grid, with few beyond its ends."""
    return spread * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def nearest(weight: Tensor) -> Tensor:
    return weight.round().clamp(-8, 7)


def moves_within_one(count: int) -> Tensor:
    """Every way to move ``count`` codes by -1, 0 or 1, ``[3 ** count, count]``."""
    return torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=count)))


def least_error(error: Tensor) -> float:
    """Least squared error of values moved by at most one whose sum is within half a step."""
    tried = error + moves_within_one(len(error))
    tried = tried[tried.sum(1).abs() <= HALF]
    return float(tried.square().sum(1).min())


@pytest.mark.parametrize("shape", [(60, 1, 7), (60, 7, 1)], ids=["kernel", "pointwise"])
def test_one_stage_finds_the_least_error_of_all_that_cancel(shape: tuple[int, int, int]) -> None:
    weight = drawn(*shape, seed=0).clamp(-7.4, 6.4)
    error = (squant(weight, nearest(weight), 4) - weight).flatten(1)
    before = (nearest(weight) - weight).flatten(1)
    assert int((before.sum(1).abs() > HALF).sum()) > 15  # deviation sqrt(7 / 12): one in two
    assert (error.sum(1).abs() <= HALF).all()
    for found, start in zip(error, before, strict=True):
        assert float(found.square().sum()) == pytest.approx(least_error(start), abs=1e-5)


def test_each_stage_takes_the_least_move() -> None:
    """Kernels: least squared sums under the channel's bound. Weights: least error for these."""
    weight = drawn(40, 4, 4, seed=1).clamp(-7.4, 6.4)
    codes, start = squant(weight, nearest(weight), 4), nearest(weight) - weight
    for row, first, sums in zip(codes - weight, start, start.sum(-1), strict=True):
        found = row.sum(-1)
        # no kernel's sum exceeds half a step behind the first stage; the second moves some by one
        bound = least_error(sums - sums.round())
        assert float(found.square().sum()) == pytest.approx(bound, abs=1e-5)
        for kernel, begun in zip(row, first, strict=True):
            tried = begun + moves_within_one(4)
            same = tried[(tried.sum(1) - kernel.sum()).abs() < 1e-4]
            least = float(same.square().sum(1).min())
            assert float(kernel.square().sum()) == pytest.approx(least, abs=1e-5)


@pytest.mark.parametrize("shape", [(16, 24, 9), (16, 96, 1), (96, 1, 25), (4, 3, 49)])
def test_bounds_hold_where_nothing_is_clipped(shape: tuple[int, int, int]) -> None:
    weight = drawn(*shape, seed=2).clamp(-7.4, 6.4)
    begun = nearest(weight)
    codes = squant(weight, begun, 4)
    kernels = (codes - weight).sum(-1)
    assert int((codes - begun).abs().max()) == 1
    assert float((codes - weight).abs().max()) <= 1.0
    assert (kernels.sum(-1).abs() <= HALF).all()
    assert (kernels.abs() <= 0.5 + HALF).all()
    # only as many kernels beyond half a step as their channel needed moves
    needed = (begun - weight).sum(-1)
    needed = (needed - needed.round()).sum(-1).abs().round()
    assert torch.equal((kernels.abs() > HALF).sum(-1), needed.long())


def test_codes_stay_on_the_grid_where_weights_are_clipped() -> None:
    weight = drawn(32, 8, 9, seed=3, spread=6.0)
    begun = nearest(weight)
    codes = squant(weight, begun, 4)
    assert codes.min() >= -8
    assert codes.max() <= 7
    assert int((codes - begun).abs().max()) == 1
    assert torch.equal(codes, codes.round())
    clipped = begun != weight.round()
    assert clipped.any()
    moved_out = (codes - begun) * weight.sign() * clipped
    assert float(moved_out.max()) <= 0.0


def test_a_kernel_with_all_codes_at_the_end_of_the_grid_stays() -> None:
    weight = torch.full((1, 2, 9), 7.4)
    assert torch.equal(squant(weight, nearest(weight), 4), torch.full((1, 2, 9), 7.0))


class Net(nn.Module):
    """Convolutions with activations between them, transposed ones among them."""

    def __init__(self, transposed: dict[str, Any]) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.a, self.norm_a = nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.b, self.norm_b = nn.Conv2d(32, 32, 1, groups=4), nn.BatchNorm2d(32)
        self.up, self.norm_up = nn.ConvTranspose2d(32, 32, **transposed), nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.norm_a(self.a(x)))
        x = F.relu(self.norm_b(self.b(x)))
        y: Tensor = self.head(F.relu(self.norm_up(self.up(x))).mean((2, 3)))
        return y


TRANSPOSED: list[dict[str, Any]] = [
    {"kernel_size": 2, "stride": 2},
    {"kernel_size": 3, "stride": 2, "groups": 4},
    {"kernel_size": 3, "stride": 2, "dilation": 3},
]


def trained(transposed: dict[str, Any], seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Net(transposed)
        for _ in range(5):
            net.train()(torch.randn(32, 3, 8, 8))
        return net.eval()


def divergence(model: QuantizedModel, module: nn.Module) -> float:
    """KL of the classes' distributions on inputs that nothing was measured on."""
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        wanted = (8 * module(x)).log_softmax(1)  # random networks hardly prefer a class
        found = (8 * simulate(lower(model, NEUTRAL, {}), x)[0]).log_softmax(1)
    return float(F.kl_div(found, wanted, reduction="batchmean", log_target=True))


def test_networks_gain(quantize_module: Quantize) -> None:
    """Three networks of random weights; each of them measured to end between 0.4 and 0.9."""
    before, after = [], []
    for seed, transposed in enumerate(TRANSPOSED):
        module = trained(transposed, seed)
        model = quantize_module(module, (3, 8, 8), scheme="w4a8")
        rounded = round_weights(model, Rounding.SQUANT)
        assert rounded.decisions["rounding"] == "squant"
        before.append(divergence(model, module))
        after.append(divergence(rounded, module))
    assert sum(after) < 0.85 * sum(before), (before, after)


@pytest.mark.parametrize("transposed", TRANSPOSED)
def test_errors_of_a_transposed_layer_cancel_at_every_output(
    quantize_module: Quantize, transposed: dict[str, Any]
) -> None:
    """A constant input lets each output sum up the errors that it sees."""
    model = quantize_module(trained(transposed, 0), (3, 8, 8), scheme="w4a8")
    consumers = (model.sited.node(s.consumer) for s in model.sited.sites if s.role is Role.WEIGHT)
    layer = next(node for node in consumers if layer_name(node) == "up")
    weight = drawn(*model.codes["up"].codes.shape, seed=4).clamp(-7.4, 6.4)  # a step of 1
    begun = quantize_weight(weight, torch.ones(weight.shape[1]), 1, 4)
    moved = cancel_errors(layer, weight, begun)
    options = {k: v for k, v in transposed.items() if k != "kernel_size"}

    def worst(codes: Tensor) -> float:
        y = F.conv_transpose2d(torch.ones(1, len(weight), 9, 9), codes - weight, **options)
        edge = transposed.get("dilation", 1) * 2  # where not all of the kernel takes part
        return float(y[:, :, edge:-edge, edge:-edge].abs().max())

    assert torch.equal(moved.scale, begun.scale)
    # the worst of hundreds of sums over 8 to 128 errors, whose deviation is 0.8 or more
    assert worst(begun.codes) > 2
    assert worst(moved.codes) <= HALF + 1e-4


def test_tables_blocks_and_wide_layers_stay(quantize_module: Quantize) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(*(m for _ in range(3) for m in (nn.Linear(64, 64), nn.ReLU())))
    stored = quantize_module(layers, (64,), scheme="w4a16")
    rounded = round_weights(stored, Rounding.SQUANT)
    assert rounded.decisions["rounding"] == "nearest: SQuant is not for codes in blocks"
    assert torch.equal(rounded.codes["2"].codes, stored.codes["2"].codes)
    narrow = quantize_module(layers, (64,), scheme="w4a8")
    moved, names = round_by_squant(narrow)
    assert names == {"2"}  # the ends have 8 bits
    assert torch.equal(moved.codes["0"].codes, narrow.codes["0"].codes)
    again, skipped = round_by_squant(narrow, skip={"2"})
    assert not skipped
    assert torch.equal(again.codes["2"].codes, narrow.codes["2"].codes)
