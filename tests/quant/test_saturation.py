"""The saturation lint against loops over pairs and an emulation of ``vpmaddubsw``."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.quant.affine import max_scale, quantize_weight
from edgekit.quant.saturation import (
    PAIR_LIMIT,
    Pairing,
    _pairs,
    _unpairs,
    quantize_without_overflow,
)

INT16 = np.iinfo(np.int16)
PAIRINGS = pytest.mark.parametrize("pairing", [Pairing.FLAT, Pairing.CHANNELS])


def pairs_of(channel: np.ndarray, pairing: Pairing) -> Iterator[tuple[int, int]]:
    """Pairs of ``[C_in, *kernel]`` (or ``[C_in]``) in kernel order, a lone last one with zero."""
    inputs = channel.shape[0]
    positions = channel.reshape(inputs, -1)
    rows = [[int(positions[i, p]) for i in range(inputs)] for p in range(positions.shape[1])]
    if pairing is Pairing.FLAT:
        rows = [[code for row in rows for code in row]]
    for row in rows:
        padded = row + [0] * (len(row) % 2)
        yield from zip(padded[::2], padded[1::2], strict=True)


def overflows(channel: np.ndarray, pairing: Pairing) -> bool:
    """Whether some activations in 0..255 drive one pair sum out of 16 bits."""
    for pair in pairs_of(channel, pairing):
        highest = sum(255 * max(code, 0) for code in pair)
        lowest = sum(255 * min(code, 0) for code in pair)
        if highest > INT16.max or lowest < INT16.min:
            return True
    return False


def squared_errors(weight: torch.Tensor, dequantized: torch.Tensor) -> torch.Tensor:
    return (weight - dequantized).double().square().flatten(1).sum(1)


@st.composite
def weights(draw: st.DrawFn) -> torch.Tensor:
    """Weights of few values, most of them large: pairs at risk are common."""
    kernel = draw(st.sampled_from([(), (1,), (3,), (1, 1), (2, 3)]))
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 7)), *kernel)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["normal", "two values", "uniform", "grid"]))
    values = {
        "normal": lambda: rng.normal(size=shape),
        "two values": lambda: rng.choice([-1.0, 1.0, 0.0], size=shape, p=[0.4, 0.4, 0.2]),
        "uniform": lambda: rng.uniform(0.5, 1.0, size=shape) * rng.choice([-1, 1], size=shape),
        "grid": lambda: rng.integers(-63, 64, size=shape) / 63,  # exact at half range
    }[kind]()
    return torch.from_numpy(values * rng.uniform(0.01, 10, size=(shape[0],) + (1,) * (len(shape) - 1))).float()  # fmt: skip  # noqa: E501


def test_limit_is_the_largest_safe_sum() -> None:
    assert 255 * PAIR_LIMIT <= INT16.max < 255 * (PAIR_LIMIT + 1)
    assert INT16.min <= -255 * PAIR_LIMIT


@settings(deadline=None)  # the machine may be busy
@given(weights(), st.sampled_from([Pairing.FLAT, Pairing.CHANNELS]))
def test_no_activation_can_overflow_and_safe_channels_stay(
    weight: torch.Tensor, pairing: Pairing
) -> None:
    codes, report = quantize_without_overflow(weight, 0, 8, pairing)
    full = quantize_weight(weight, max_scale(weight, 0, 8), 0, 8)
    at_risk = 0
    for channel in range(weight.shape[0]):
        if weight.shape[1] > 1:
            assert not overflows(codes.codes[channel].numpy(), pairing)
        if weight.shape[1] > 1 and overflows(full.codes[channel].numpy(), pairing):
            at_risk += 1
            continue
        assert torch.equal(codes.codes[channel], full.codes[channel])
        assert codes.scale[channel] == full.scale[channel]
    assert (report.channels, report.at_risk) == (weight.shape[0], at_risk)
    assert int(codes.codes.abs().max()) <= 127


@settings(deadline=None)
@given(weights(), st.sampled_from([Pairing.FLAT, Pairing.CHANNELS]))
def test_error_is_never_worse_than_with_half_the_range(
    weight: torch.Tensor, pairing: Pairing
) -> None:
    codes, _ = quantize_without_overflow(weight, 0, 8, pairing)
    half = quantize_weight(weight, max_scale(weight, 0, 7), 0, 7)  # codes -63..63: what others do
    full = quantize_weight(weight, max_scale(weight, 0, 8), 0, 8)
    ours = squared_errors(weight, codes.dequantize())
    # a channel that is not at risk keeps full range, which may lose to half range by luck
    worst = torch.maximum(
        squared_errors(weight, half.dequantize()), squared_errors(weight, full.dequantize())
    )
    same = (codes.codes == full.codes).flatten(1).all(1)
    reference = torch.where(same, worst, squared_errors(weight, half.dequantize()))
    # the scale of half range is the full one times 127 / 63: another rounding to float32
    slack = 1e-6 * weight.double().square().flatten(1).sum(1)
    assert bool((ours <= reference + slack).all())


@PAIRINGS
@pytest.mark.parametrize("inputs", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("kernel", [(), (5,), (3, 3), (1, 2, 2)])
def test_pairs_are_those_of_the_kernel_and_can_be_undone(
    pairing: Pairing, inputs: int, kernel: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    codes = torch.from_numpy(rng.integers(-127, 128, (4, inputs, *kernel))).float()
    pairs = _pairs(codes, pairing)
    for channel in range(4):
        expected = list(pairs_of(codes[channel].numpy(), pairing))
        assert [tuple(p) for p in pairs[channel].reshape(-1, 2).int().tolist()] == expected
    assert torch.equal(_unpairs(pairs, codes.shape, pairing), codes)


def test_report_counts_and_names_the_worst_pair() -> None:
    weight = torch.zeros(3, 4)
    weight[0] = torch.tensor([1.0, 1.0, 0.0, 0.0])  # 127 + 127
    weight[1] = torch.tensor([1.0, -1.0, 0.0, 0.0])  # of two signs: each part is 127
    weight[2] = torch.tensor([0.0, 1.0, 1.0, 0.0])  # neighbours, but of two pairs
    codes, report = quantize_without_overflow(weight, 0, 8, Pairing.FLAT)
    assert (report.channels, report.at_risk, report.worst_pair) == (3, 1, 254)
    assert codes.codes[1:].tolist() == [[127, -127, 0, 0], [0, 127, 127, 0]]
    assert int(codes.codes[0].sum()) <= 128


@PAIRINGS
def test_what_forms_no_pairs_is_left_alone(pairing: Pairing) -> None:
    weight = torch.ones(6, 1, 3, 3)  # depthwise kernels widen to 16 bits before they multiply
    transposed = torch.ones(4, 6, 2, 2)
    for tensor, axis, how in (
        (weight, 0, pairing),
        (transposed, 1, pairing),
        (torch.ones(3, 4), 0, Pairing.NONE),
    ):
        codes, report = quantize_without_overflow(tensor, axis, 8, how)
        full = quantize_weight(tensor, max_scale(tensor, axis, 8), axis, 8)
        assert torch.equal(codes.codes, full.codes)
        assert report.at_risk == 0


def saturating_convolution(image: np.ndarray, codes: np.ndarray, pairing: Pairing) -> np.ndarray:
    """Valid convolution with each pair of products added in 16 bits with saturation."""
    outputs, _, height, width = codes.shape
    rows, columns = image.shape[1] - height + 1, image.shape[2] - width + 1
    found = np.zeros((outputs, rows, columns), np.int64)
    for o, y, x in np.ndindex(outputs, rows, columns):
        patch = image[:, y : y + height, x : x + width]
        for a, w in zip(pairs_of(patch, pairing), pairs_of(codes[o], pairing), strict=True):
            found[o, y, x] += np.clip(a[0] * w[0] + a[1] * w[1], INT16.min, INT16.max)
    return found


def exact_convolution(image: np.ndarray, codes: np.ndarray) -> np.ndarray:
    x, w = torch.from_numpy(image)[None].double(), torch.from_numpy(codes).double()
    return torch.nn.functional.conv2d(x, w)[0].long().numpy()


@PAIRINGS
def test_emulated_avx2_kernel_overflows_on_full_range_and_is_exact_on_ours(
    pairing: Pairing,
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 5, 3, 3, generator=generator)  # odd channel count: pairs straddle
    weight[0] = weight[0].abs()
    weight[1] = -weight[1].abs()
    full = quantize_weight(weight, max_scale(weight, 0, 8), 0, 8).codes.numpy()
    ours = quantize_without_overflow(weight, 0, 8, pairing)[0].codes.numpy()
    # crafted: every pixel at 255 where the first channel's weights are positive, and random ones
    crafted = np.full((5, 4, 4), 255)
    noise = np.random.default_rng(0).integers(0, 256, (5, 4, 4))
    assert not np.array_equal(
        saturating_convolution(crafted, full, pairing), exact_convolution(crafted, full)
    )
    for image in (crafted, noise):
        assert np.array_equal(
            saturating_convolution(image, ours, pairing), exact_convolution(image, ours)
        )
