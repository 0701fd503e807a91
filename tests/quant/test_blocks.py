"""Block-wise codes: their error, their scales, and what they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit.quant.affine import max_scale, quantize_weight
from edgekit.quant.blocks import block_size, quantize_blocks


@pytest.mark.parametrize(
    ("inputs", "block"),
    [(1024, 128), (256, 128), (192, 64), (128, 64), (96, 32), (48, 16), (32, 16), (16, None),
     (100, None), (7, None)],
)  # fmt: skip
def test_block_is_the_largest_that_leaves_several(inputs: int, block: int | None) -> None:
    assert block_size(inputs) == block


@pytest.mark.parametrize("bits", [3, 4])
def test_codes_stand_for_scale_times_code_of_each_block(bits: int) -> None:
    weight = torch.randn(6, 96, generator=torch.Generator().manual_seed(0))
    found = quantize_blocks(weight, bits, 32)
    codes, scale = found.codes.numpy(), found.scale.numpy()
    assert (found.block, found.bits, found.axis) == (32, bits, 0)
    assert (codes.shape, scale.shape) == ((6, 96), (6, 3))
    assert codes.min() >= -(2 ** (bits - 1))
    assert codes.max() < 2 ** (bits - 1)
    by_hand = np.stack([codes[:, k] * scale[:, k // 32] for k in range(96)], axis=1)
    np.testing.assert_array_equal(found.dequantize().numpy(), by_hand)


def test_scales_are_fp16_numbers_and_codes_the_nearest() -> None:
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    found = quantize_blocks(weight, 4, 16)
    assert torch.equal(found.scale.half().float(), found.scale)
    # No other code of the grid -8..7 lies closer to its weight.
    steps = found.scale.repeat_interleave(16, 1)
    grid = torch.arange(-8, 8)[:, None, None] * steps
    least = (grid - weight).abs().amin(0)
    torch.testing.assert_close((found.dequantize() - weight).abs(), least)


def test_error_is_close_to_the_best_scale_of_each_block() -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(2))
    weight[0, 3] = 9.0  # an outlier spoils the scale of one block alone
    found = quantize_blocks(weight, 4, 32)
    rows = weight.reshape(-1, 32)
    error = (found.dequantize().reshape(-1, 32) - rows).square().sum(1)
    peak = rows.abs().amax(1, keepdim=True) / 7
    trials = [
        ((rows / step).round().clamp(-8, 7) * step - rows).square().sum(1)
        for step in (peak * clip for clip in np.linspace(0.2, 1.2, 2001))
    ]
    best = torch.stack(trials).amin(0)
    # 31 clips stand for a continuum, and none goes beyond the largest weight: how well 32 weights
    # happen to lie on a grid is luck in part, of which a finer search finds a few percent more.
    assert (error / best).median() < 1.05
    assert error.sum() < 1.05 * best.sum()
    widest = quantize_weight(rows, max_scale(rows, 0, 4), 0, 4).dequantize()
    assert error.sum() < (widest - rows).square().sum()


def test_block_of_zeros() -> None:
    weight = torch.zeros(2, 64)
    weight[:, :32] = 0.5
    found = quantize_blocks(weight, 4, 32)
    assert (found.scale > 0).all()
    assert torch.equal(found.codes[:, 32:], torch.zeros(2, 32, dtype=torch.int8))
