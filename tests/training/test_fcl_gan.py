"""FCL-GAN's training: where each loss reaches, and that a run goes on where it stopped."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from edgekit.errors import ConfigError  # noqa: E402
from edgekit.models.fcl_gan import Generator  # noqa: E402
from edgekit.training.drawn_pictures import DrawnPictures  # noqa: E402
from edgekit.training.fcl_gan import FclGan, total_variation  # noqa: E402
from edgekit.training.loop import TrainingTask  # noqa: E402
from edgekit.training.paired_restoration import PairedRestoration  # noqa: E402
from edgekit.training.restoration_options import Contrast, RestorationOptions  # noqa: E402
from edgekit.training.settings import with_settings  # noqa: E402

OPTIONS = RestorationOptions(batch=2, crop=32)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pictures() -> DrawnPictures:
    return DrawnPictures(0, scenes=6, side=48, held_out=2)


def task(
    pictures: DrawnPictures, kind: type[FclGan | PairedRestoration] = FclGan, **changes: Any
) -> FclGan | PairedRestoration:
    options = replace(OPTIONS, **changes)
    return kind(lambda: Generator(8, 1), pictures, options, seed=0, device=CPU)


def after(steps: int, made: TrainingTask, first: int = 0) -> Mapping[str, float]:
    losses: Mapping[str, float] = {}
    for index in range(first, first + steps):
        losses = made.step(index, 0.0)
    return losses


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_released_contrast_changes_no_weight_and_the_soft_one_does(
    pictures: DrawnPictures,
) -> None:
    made = {form: task(pictures, contrast=form) for form in Contrast}
    losses = {form: after(2, each) for form, each in made.items()}
    weights = {form: each.weights() for form, each in made.items()}
    assert same(weights[Contrast.RELEASED], weights[Contrast.OFF])
    assert not same(weights[Contrast.DIFFERENTIABLE], weights[Contrast.OFF])
    assert losses[Contrast.OFF]["contrast"] == 0.0
    assert losses[Contrast.RELEASED]["contrast"] > 0.0


@pytest.mark.parametrize("kind", [FclGan, PairedRestoration])
def test_state_is_all_that_a_step_depends_on(
    kind: type[FclGan | PairedRestoration], pictures: DrawnPictures
) -> None:
    whole = task(pictures, kind)
    after(2, whole)
    resumed = task(pictures, kind)
    resumed.restore(copy.deepcopy(whole.state()))  # on disk nothing is shared, either
    assert after(2, whole, 2) == after(2, resumed, 2)
    assert whole.validate() == resumed.validate()
    assert same(whole.weights(), resumed.weights())


@pytest.mark.parametrize("fixed", [True, False])
def test_weights_compute_what_was_validated(fixed: bool, pictures: DrawnPictures) -> None:
    made = task(pictures, fixed_norms=fixed)
    after(2, made)
    score = made.validate()
    network = Generator(8, 1)
    network.load_state_dict(made.weights())
    network.eval()
    seen = []
    norm = network.down_2[1]
    norm.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    with torch.no_grad():
        for blurred, _ in made.restorer._pairs:
            torch.testing.assert_close(
                network.restore(blurred),
                made.restorer.network.restore(blurred),
                # statistics of one pass in place of those of another: float32 rounding
                rtol=1e-3,
                atol=1e-4,
            )
        seen.clear()
        for batch in made.restorer.blurred.split(8):
            network.restore(batch)
    assert score == made.validate()
    assert isinstance(norm, torch.nn.BatchNorm2d)
    assert norm.running_mean is not None
    mean = torch.cat(seen).mean((0, 2, 3))
    spread = torch.cat(seen).std((0, 2, 3))
    if fixed:  # the other mode measures with the statistics of each batch
        assert float(((mean - norm.running_mean) / spread).abs().max()) < 1e-3


def test_seed_decides_everything(pictures: DrawnPictures) -> None:
    one, other = task(pictures), task(pictures)
    assert after(1, one) == after(1, other)
    assert same(one.weights(), other.weights())


def test_pairs_are_learned(pictures: DrawnPictures) -> None:
    made = task(pictures, PairedRestoration, lr=2e-3)
    losses = [made.step(index, 0.0)["distance"] for index in range(30)]
    # the same six scenes again and again: a third of the steps each
    assert np.mean(losses[-10:]) < np.mean(losses[:10])


def test_metric_starts_near_the_blurred_pictures(pictures: DrawnPictures) -> None:
    made = task(pictures)
    blurred = made.restorer.blurred_psnr()
    by_hand = [
        20 * np.log10(255) - 10 * np.log10(((one.astype(float) - other.astype(float)) ** 2).mean())
        for one, other in pictures.validation()
    ]
    assert blurred == pytest.approx(np.mean(by_hand), abs=1e-3)  # float32 against float64
    # it begins as the identity, of which 8 channels at 48x48 are some decibels short
    assert blurred - 4.0 < made.validate() <= blurred + 0.5
    fresh = task(pictures, identity_start=False, fixed_norms=False)
    assert fresh.validate() < made.validate() - 2.0


def test_losses_are_told_by_name(pictures: DrawnPictures) -> None:
    papers = {"adversarial", "cycle", "contrast", "variation", "judges"}
    assert set(after(1, task(pictures))) == papers
    assert set(after(1, task(pictures, identity=5.0))) == {*papers, "identity"}


def test_discriminators_are_fixed_only_for_the_generators_step(pictures: DrawnPictures) -> None:
    made = task(pictures)
    assert isinstance(made, FclGan)
    before = [p.clone() for p in made._judge_sharp.parameters()]
    after(1, made)
    parameters = list(made._judge_sharp.parameters())
    assert all(p.requires_grad for p in parameters)
    assert any(not torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


def test_total_variation_of_a_ramp() -> None:
    ramp = torch.arange(5.0).expand(1, 3, 4, 5) + 10 * torch.arange(4.0)[:, None]
    assert float(total_variation(ramp)) == 11.0


def test_rate_is_halved_at_each_quarter() -> None:
    rates = [RestorationOptions(lr=8.0).rate(spent) for spent in (0, 0.24, 0.25, 0.5, 0.75, 1)]
    assert rates == [8.0, 8.0, 4.0, 2.0, 1.0, 1.0]


def test_settings_change_options() -> None:
    changed = with_settings(
        RestorationOptions(), ["lr=1e-4", "batch=2", "contrast=released", "pairs=true"]
    )
    assert changed == RestorationOptions(lr=1e-4, batch=2, contrast=Contrast.RELEASED, pairs=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed=3", "expected KEY=VALUE with a known key"),
        ("lr", "expected KEY=VALUE"),
        ("lr=fast", "expected a number"),
        ("batch=1.5", "expected a whole number"),
        ("pairs=maybe", "expected true or false"),
        ("contrast=soft", "expected differentiable or released or off"),
        ("crop=50", "a multiple of 16"),
        ("lr=-1", "expected a positive number"),
        ("identity_start=false", "fixed statistics are measured"),
        ("cycle=nan", "expected 0 or more"),
        ("batch=0", "at least 1"),
    ],
)
def test_senseless_setting(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        with_settings(RestorationOptions(), [text])
    if "known key" in message:
        assert "contrast=differentiable" in caught.value.hint
