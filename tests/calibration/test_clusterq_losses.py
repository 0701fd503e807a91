"""Losses and centroids against loops over classes, as the equations write them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from edgekit.calibration._centroids import Centroids
from edgekit.calibration._statistics_losses import (
    ClassSpread,
    Distance,
    Scale,
    Spread,
    Variation,
    alignment_loss,
    batch_spread,
    class_spread,
    stored_spread,
    variation_loss,
)
from edgekit.calibration._teacher import Moments, NormLayer

CHANNELS = (3, 5)  # of the two layers
CLASSES = 4


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def norms() -> list[NormLayer]:
    g = draws(7)
    return [
        NormLayer(f"norm{i}", torch.randn(c, generator=g), torch.rand(c, generator=g) + 0.5)
        for i, c in enumerate(CHANNELS)
    ]


@pytest.fixture
def maps() -> list[Tensor]:
    """Inputs of the two BatchNorms for 12 samples: positions differ from layer to layer."""
    g = draws(1)
    made = [
        torch.randn(12, c, p, generator=g).double() for c, p in zip(CHANNELS, (16, 4), strict=True)
    ]
    return [value.requires_grad_() for value in made]


SLOTS = torch.arange(12) % 3
CORRECT = torch.tensor([1, 1, 0, 1, 1, 0, 1, 0, 0, 1, 1, 0]).bool()  # class 2 has none


def moments(maps: list[Tensor]) -> list[Moments]:
    return [Moments(x.mean(2), x.square().mean(2)) for x in maps]


def test_class_statistics_equal_a_loop_over_classes(maps: list[Tensor]) -> None:
    found = class_spread(moments(maps), SLOTS, 3, CORRECT)
    assert found.present.tolist() == [True, True, False]
    for c in range(2):
        members = [x[(c == SLOTS) & CORRECT] for x in maps]
        mean = torch.cat([m.transpose(0, 1).flatten(1).mean(1) for m in members])
        variance = torch.cat([m.transpose(0, 1).flatten(1).var(1, correction=0) for m in members])
        # E[x^2] - mean^2 in float64: rounding near 1e-15
        assert torch.allclose(found.spread.mean[c], mean, atol=1e-12)
        assert torch.allclose(found.spread.variance[c], variance, atol=1e-12)


def test_misclassified_samples_have_no_influence(maps: list[Tensor]) -> None:
    found = class_spread(moments(maps), SLOTS, 3, CORRECT)
    (found.spread.mean[:2].sum() + found.spread.variance[:2].sum()).backward()
    for x in maps:
        assert x.grad is not None
        assert not x.grad[~CORRECT].any()
        assert bool(x.grad[CORRECT].flatten(1).any(1).all())


def test_batch_loss_is_the_mean_over_channels_then_layers(
    maps: list[Tensor], norms: list[NormLayer]
) -> None:
    found = Distance.over(norms, Scale.ABSOLUTE)(
        batch_spread(moments([x.float() for x in maps])), stored_spread(norms)
    )
    expected = 0.0
    for x, norm in zip(maps, norms, strict=True):
        flat = x.transpose(0, 1).flatten(1)
        mean, variance = flat.mean(1), flat.var(1, correction=0)
        expected += ((mean - norm.mean) ** 2).mean() + ((variance - norm.variance) ** 2).mean()
    # float32 throughout
    assert float(found) == pytest.approx(float(expected) / 2, rel=1e-5)


def test_relative_errors_do_not_depend_on_a_channels_unit(norms: list[NormLayer]) -> None:
    g = draws(3)
    found = Spread(torch.randn(8, generator=g), torch.rand(8, generator=g) + 0.5)
    scales = torch.tensor([2.0, 2.0, 2.0, 0.5, 0.5, 0.5, 0.5, 0.5])  # one unit for each layer
    other = Spread(found.mean * scales, found.variance * scales**2)
    scaled = [
        NormLayer(n.name, n.mean * s, n.variance * s**2)
        for n, s in zip(norms, (2.0, 0.5), strict=True)
    ]
    plain = Distance.over(norms, Scale.RELATIVE)(found, stored_spread(norms))
    again = Distance.over(scaled, Scale.RELATIVE)(other, stored_spread(scaled))
    # 1e-8 under the root, of variances above 0.1
    assert float(again) == pytest.approx(float(plain), rel=1e-5)
    absolute = [
        float(Distance.over(n, Scale.ABSOLUTE)(s, stored_spread(n)))
        for n, s in ((norms, found), (scaled, other))
    ]
    assert absolute[1] != pytest.approx(absolute[0], rel=0.1)


@pytest.fixture
def centroid() -> Spread:
    g = draws(5)
    return Spread(torch.randn(3, 8, generator=g).double(), torch.rand(3, 8, generator=g).double())


@pytest.fixture
def distance(norms: list[NormLayer]) -> Distance:
    made = Distance.over(norms, Scale.ABSOLUTE)
    return Distance(made.mean_weight.double(), made.spread_weight.double(), deviation=False)


VALID = torch.tensor([True, True, True])


def test_alignment_equals_the_equation_and_skips_absent_classes(
    maps: list[Tensor], centroid: Spread, distance: Distance
) -> None:
    found = class_spread(moments(maps), SLOTS, 3, CORRECT)
    expected = 0.0
    for c in range(2):
        for layer in (slice(0, 3), slice(3, 8)):
            error = found.spread.mean[c, layer] - centroid.mean[c, layer]
            spread = found.spread.variance[c, layer] - centroid.variance[c, layer]
            expected += float((error**2).mean() + (spread**2).mean()) / 2
    value = alignment_loss(found, centroid, VALID, distance)
    assert float(value) == pytest.approx(expected / 2, rel=1e-6)
    # a class without centroid is left out as well
    one = alignment_loss(found, centroid, torch.tensor([True, False, True]), distance)
    assert float(one) != pytest.approx(float(value))
    none = alignment_loss(found, centroid, torch.zeros(3).bool(), distance)
    assert float(none) == 0.0


def test_alignment_pulls_each_class_its_own_way(
    maps: list[Tensor], centroid: Spread, distance: Distance
) -> None:
    found = class_spread(moments(maps), SLOTS, 3, CORRECT)
    alignment_loss(found, centroid, VALID, distance).backward()
    gradient = maps[1].grad
    assert gradient is not None
    first, second = (gradient[(c == SLOTS) & CORRECT].mean(0).flatten() for c in (0, 1))
    assert float(first.norm()) > 0
    assert float(second.norm()) > 0
    cosine = torch.nn.functional.cosine_similarity(first, second, dim=0)
    assert float(cosine) < 0.9  # one pull for all classes, as the released trainer has, gives 1


def variation(found: ClassSpread, centroid: Spread, distance: Distance, **change: object) -> Tensor:
    options: dict[str, object] = {
        "variation": Variation.ABSOLUTE,
        "mean_lambda": 0.5,
        "variance_lambda": 1.0,
        "generator": draws(),
        **change,
    }
    return variation_loss(found, centroid, VALID, distance, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", [Variation.ABSOLUTE, Variation.RELATIVE])
def test_variation_is_alignment_on_average(
    form: Variation, maps: list[Tensor], centroid: Spread, distance: Distance
) -> None:
    def gradient(loss: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, maps, retain_graph=True)])

    found = class_spread(moments(maps), SLOTS, 3, CORRECT)
    aligned = gradient(alignment_loss(found, centroid, VALID, distance))
    g, count = draws(), 400
    each = torch.stack(
        [
            gradient(variation(found, centroid, distance, variation=form, generator=g))
            for _ in range(count)
        ]
    )
    noise = each.std(0) / math.sqrt(count)
    assert float(noise.mean()) > 0
    # 240 gradients of which few are independent: five standard errors
    assert bool(((each.mean(0) - aligned).abs() <= 5 * noise + 1e-12).all())


def test_variation_noise_has_the_stated_deviation(centroid: Spread, distance: Distance) -> None:
    """With the class exactly at its centroid, what is left is the noise: E = sum of lambda^2."""
    found = ClassSpread(centroid, VALID)
    g, count = draws(), 2000

    def mean(form: Variation, slack: float) -> float:
        values = [
            float(
                variation(
                    found,
                    centroid,
                    distance,
                    variation=form,
                    mean_lambda=0.5,
                    variance_lambda=slack,
                    generator=g,
                )
            )
            for _ in range(count)
        ]
        return sum(values) / count

    # each value averages 48 squares of normal draws (relative error 20 %), 2000 of them 0.5 %
    assert mean(Variation.ABSOLUTE, 1.0) == pytest.approx(0.25 + 1.0, rel=0.03)
    weight = distance.mean_weight
    relative = 0.25 * centroid.variance @ weight + 0.25 * centroid.variance.square() @ weight
    assert mean(Variation.RELATIVE, 0.5) == pytest.approx(float(relative.mean()), rel=0.05)


def test_hinge_is_free_inside_its_tube_and_grows_from_its_wall(
    centroid: Spread, distance: Distance
) -> None:
    deviation, variance = centroid.variance.sqrt(), centroid.variance

    def at(mean_shift: float, variance_shift: float) -> float:
        moved = Spread(centroid.mean + mean_shift * deviation, variance + variance_shift * variance)
        return float(
            variation(
                ClassSpread(moved, VALID),
                centroid,
                distance,
                variation=Variation.HINGE,
                variance_lambda=0.5,
            )
        )

    assert at(0.49, -0.49) == pytest.approx(0.0, abs=1e-15)
    weight = distance.mean_weight
    # beyond the wall by 0.2 deviations, and by 0.3 variances
    assert at(-0.7, 0.0) == pytest.approx(float((0.04 * variance @ weight).mean()), rel=1e-9)
    assert at(0.0, 0.8) == pytest.approx(float((0.09 * variance**2 @ weight).mean()), rel=1e-9)


def spread_of(value: float) -> Spread:
    return Spread(torch.full((2, 3), value), torch.full((2, 3), 10 * value))


def test_centroids_are_set_at_first_sight_then_averaged() -> None:
    centroids = Centroids(5, 3, torch.device("cpu"))
    classes = torch.tensor([4, 1])
    _, valid = centroids.of(classes)
    assert valid.tolist() == [False, False]
    centroids.update(classes, ClassSpread(spread_of(1.0), torch.tensor([True, False])), 0.2)
    centroids.update(classes, ClassSpread(spread_of(2.0), torch.tensor([True, True])), 0.2)
    found, valid = centroids.of(torch.tensor([1, 4, 0]))
    assert valid.tolist() == [True, True, False]
    # class 1 was first seen in the second batch; class 4: 0.8 * 1 + 0.2 * 2
    assert found.mean[:, 0].tolist() == pytest.approx([2.0, 1.2, 0.0])
    assert found.variance[:, 0].tolist() == pytest.approx([20.0, 12.0, 0.0])


def test_centroids_stay_with_beta_zero_and_carry_no_gradient() -> None:
    centroids = Centroids(2, 3, torch.device("cpu"))
    both = torch.tensor([0, 1])
    present = torch.tensor([True, True])
    centroids.update(both, ClassSpread(spread_of(1.0), present), 0.0)
    live = Spread(torch.ones(2, 3, requires_grad=True) * 3, torch.ones(2, 3, requires_grad=True))
    centroids.update(both, ClassSpread(live, present), 0.0)
    found, _ = centroids.of(both)
    assert found.mean.unique().tolist() == [1.0]
    assert not found.mean.requires_grad


def test_rows_of_absent_classes_do_not_spoil_centroids() -> None:
    centroids = Centroids(2, 3, torch.device("cpu"))
    void = Spread(torch.full((2, 3), math.nan), torch.full((2, 3), math.nan))
    centroids.update(torch.tensor([0, 1]), ClassSpread(void, torch.tensor([False, False])), 0.2)
    found, valid = centroids.of(torch.tensor([0, 1]))
    assert not valid.any()
    assert bool(found.mean.isfinite().all())
