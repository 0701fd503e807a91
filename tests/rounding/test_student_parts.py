"""What a student computes with: gradients, losses and inputs, each against a form of its own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from edgekit.quant.affine import WeightCodes, quantize_weight
from edgekit.rounding.student_inputs import Mixtures, SetStream
from edgekit.rounding.student_network import TrainedWeight
from edgekit.rounding.student_objective import logits
from edgekit.rounding.student_ops import distillation_loss, relative_error, round_weight

SCALE = torch.tensor([0.5, 0.25])


def lsq(place: float, growth: float, scale: float, bits: int) -> tuple[float, float, float]:
    """Value, gradient of the weight and of its step, for one weight, as LSQ states them."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    step = scale * math.exp(growth)
    v = place * scale / step
    if v < low - 0.5:
        return low * step, 0.0, low * step
    if v > high + 0.5:
        return high * step, 0.0, high * step
    code = min(max(round(v), low), high)
    # the step's own gradient is round(v) - v; that of its logarithm is larger by the step
    return code * step, scale, (code - v) * step


def test_gradients_are_those_of_learned_step_quantization() -> None:
    generator = torch.Generator().manual_seed(0)
    place = (torch.randn(2, 3, 5, 5, generator=generator) * 6).requires_grad_()
    growth = torch.tensor([0.2, -0.1], requires_grad=True)
    behind = torch.randn(2, 3, 5, 5, generator=generator)
    value = round_weight(place, growth, SCALE, 0, 4)
    (value * behind).sum().backward()
    assert place.grad is not None
    assert growth.grad is not None
    for channel in range(2):
        total = 0.0
        for at in np.ndindex(3, 5, 5):
            where = (channel, *at)
            wanted, of_place, of_growth = lsq(
                float(place[where]), float(growth[channel]), float(SCALE[channel]), 4
            )
            assert float(value[where]) == pytest.approx(wanted, rel=1e-5, abs=1e-6)
            assert float(place.grad[where]) == pytest.approx(
                of_place * float(behind[where]), rel=1e-5, abs=1e-6
            )
            total += of_growth * float(behind[where])
        assert float(growth.grad[channel]) == pytest.approx(total, rel=1e-4)


def test_clipped_weights_have_the_gradient_of_finite_differences() -> None:
    """Where all is clipped nothing is straight through, so differences of the value are exact."""
    place = torch.tensor([[9.0, -11.0, 30.0], [12.0, 8.0, -9.0]])
    growth = torch.zeros(2, requires_grad=True)
    weights = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 4.0, 2.0]])
    (round_weight(place, growth, SCALE, 0, 4) * weights).sum().backward()
    step = 1e-3
    ends = [
        (round_weight(place, torch.full((2,), sign * step), SCALE, 0, 4) * weights).sum(1)
        for sign in (1.0, -1.0)
    ]
    # float32 sums of about 20, so their difference over 2e-3 is good to 1e-3
    torch.testing.assert_close(growth.grad, (ends[0] - ends[1]) / (2 * step), rtol=2e-3, atol=2e-3)


def test_no_growth_is_rounding_to_the_nearest_code() -> None:
    weight = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    start = quantize_weight(weight, SCALE, 0, 4)
    found = round_weight(weight / SCALE[:, None], torch.zeros(2), SCALE, 0, 4)
    torch.testing.assert_close(found, start.dequantize())


def test_a_trained_weight_begins_at_the_codes_it_got_and_ends_at_its_own() -> None:
    weight = torch.tensor([[0.9, -0.4, 1.3, 3.4], [0.1, 0.2, -0.7, -9.0]])
    codes = torch.tensor([[1, -1, 3, 7], [1, 0, -2, -8]], dtype=torch.int8)  # not the nearest
    trained = TrainedWeight.of(weight, WeightCodes(codes, SCALE, 0, 4))
    torch.testing.assert_close(trained.value(), codes * SCALE[:, None])
    assert torch.equal(trained.codes().codes, codes)
    with torch.no_grad():
        trained.growth.copy_(torch.tensor([math.log(2.0), 0.001]))
        trained.place[1, 0] = 2.6
    found = trained.codes()
    assert found.codes[1, 0] == 3
    assert torch.equal(found.scale, found.scale.half().float())
    # an FP16 number has 11 bits
    torch.testing.assert_close(found.dequantize(), trained.value().detach(), rtol=2**-11, atol=0)


def test_distillation_is_the_divergence_of_softened_classes_by_sample() -> None:
    generator = np.random.default_rng(0)
    found, wanted = generator.normal(size=(2, 6, 10)) * 5
    temperature = 20.0

    def softened(values: np.ndarray) -> np.ndarray:
        powers = np.exp(values / temperature)
        return np.asarray(powers / powers.sum(1, keepdims=True))

    p, q = softened(wanted), softened(found)
    by_sample = (p * np.log(p / q)).sum(1)  # summed over classes, not averaged
    loss = distillation_loss(torch.from_numpy(found), torch.from_numpy(wanted), temperature)
    assert float(loss) == pytest.approx(temperature**2 * by_sample.mean(), rel=1e-9)
    # at a high temperature: half the variance over the classes of the logits' difference
    assert float(loss) == pytest.approx((found - wanted).var(1).mean() / 2, rel=0.1)


def test_relative_error() -> None:
    wanted = torch.tensor([0.0, 2.0, 0.0, 2.0])  # variance 1
    assert float(relative_error(wanted + 0.5, wanted)) == pytest.approx(0.25)


def test_a_single_score_is_one_of_two_classes() -> None:
    scores = torch.tensor([[0.7], [-2.0]])
    torch.testing.assert_close(logits(scores).softmax(1)[:, 1:], scores.sigmoid())
    two = torch.randn(3, 2)
    assert logits(two) is two


def constants(count: int, *shape: int) -> Tensor:
    """Samples each of which is its own number."""
    return torch.arange(float(count)).reshape(-1, *[1] * len(shape)).expand(count, *shape).clone()


def test_inputs_held_out_are_never_learned_on() -> None:
    inputs = constants(16, 3, 8, 8)
    inputs[::4] += 1000  # those are held out
    source = Mixtures(SetStream((inputs,), 12, seed=3, images=True), seed=3)
    held = source.held_out(20)[0]
    assert len(held) == 24
    assert float(held.min()) >= 1000
    for _ in range(12):
        (batch,), labels = source.next()
        assert batch.shape == (12, 3, 8, 8)
        assert float(batch.max()) <= 15
        assert labels is None


def test_batches_are_plain_blended_or_with_a_box() -> None:
    source = Mixtures(SetStream((constants(40, 1, 8, 8),), 16, seed=0, images=False), seed=0)
    seen: dict[str, int] = {"plain": 0, "blended": 0, "boxes": 0}
    for _ in range(30):
        (batch,), _ = source.next()
        flat = batch.flatten(1)
        whole = bool((flat == flat.round()).all())
        level = bool((flat.amax(1) - flat.amin(1) < 1e-5).all())
        kind = "blended" if not whole else "plain" if level else "boxes"
        seen[kind] += 1
        assert max(len(sample.unique()) for sample in flat) <= 2 or kind == "blended"
    assert all(count >= 3 for count in seen.values()), seen  # 10 are expected of each


def test_whole_numbers_are_not_mixed_and_other_shapes_only_blended() -> None:
    ids = torch.arange(40).reshape(20, 2)
    source = Mixtures(SetStream((ids, constants(20, 5)), 8, seed=0, images=True), seed=0)
    for _ in range(6):
        tokens, values = source.next()[0]
        for row, value in zip(tokens.tolist(), values, strict=True):
            assert row in ids.tolist()
            assert value.tolist() == [row[0] / 2] * 5  # the inputs of one sample stay together
    series = Mixtures(SetStream((constants(20, 3, 9),), 8, seed=0, images=True), seed=0)
    for _ in range(6):
        ((batch,), _) = series.next()
        assert bool((batch.amax((1, 2)) - batch.amin((1, 2)) < 1e-5).all())


def test_a_single_sample_serves_for_both() -> None:
    source = SetStream((constants(1, 3, 8, 8),), 4, seed=0, images=False)
    assert source.next()[0][0].shape == source.held_out(4)[0].shape == (4, 3, 8, 8)


def test_a_stream_goes_on_from_its_state() -> None:
    source = Mixtures(SetStream((torch.randn(9, 3, 8, 8),), 4, seed=5, images=True), seed=5)
    for _ in range(3):
        source.next()
    state = source.state()
    wanted = [source.next()[0][0] for _ in range(4)]
    source.restore(state)
    for value in wanted:
        assert torch.equal(source.next()[0][0], value)
