"""The generator: every sample shape, spread of one, and a class that matters."""

from __future__ import annotations

import pytest
import torch

from edgekit.calibration._augment import crop_and_flip
from edgekit.calibration._generator import Generator, LabelForm

SHAPES = [
    (3, 32, 32),
    (1, 28, 28),
    (2, 9, 22),  # not square, and no multiple of four
    (4, 1, 5),
    (6, 50),
    (1, 3),
    (7,),
    (2, 3, 4, 5),
    (),
]


def build(*shapes: tuple[int, ...], form: LabelForm = LabelForm.EMBEDDING) -> Generator:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Generator(shapes, 5, latent=8, width=6, form=form)


@pytest.mark.parametrize("form", LabelForm)
@pytest.mark.parametrize("shape", SHAPES)
def test_signal_has_the_shape_and_unit_spread(shape: tuple[int, ...], form: LabelForm) -> None:
    draws = torch.Generator().manual_seed(0)
    latent = torch.randn(64, 8, generator=draws)
    labels = torch.arange(64) % 5
    (signal,) = build(shape, form=form)(latent, labels)
    assert signal.shape == (64, *shape)
    channels = signal.detach().reshape(64, shape[0] if shape else 1, -1).double()
    # the last normalization divides by sqrt(variance + 1e-5); this narrow one, untrained and damped
    # by eps 0.8 inside, hands it deviations down to 0.009: sqrt(1 + 1e-5 / 0.009^2) is 6 % off
    assert torch.allclose(channels.mean((0, 2)), torch.zeros(channels.shape[1]).double(), atol=1e-5)
    assert torch.allclose(channels.std((0, 2), correction=0), torch.ones(()).double(), rtol=0.06)


@pytest.mark.parametrize("form", LabelForm)
@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 12), (5,)])
def test_label_changes_the_image(shape: tuple[int, ...], form: LabelForm) -> None:
    generator = build(shape, form=form)
    if form is LabelForm.CONDITIONAL:  # its tables start equal for all classes, and learn
        with torch.no_grad():
            for name, table in generator.named_parameters():
                if name.endswith(("gain", "shift")):
                    table += 0.3 * torch.randn(table.shape, generator=torch.Generator())
    latent = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    (first,) = generator(latent, torch.arange(16) % 5)
    (second,) = generator(latent, (torch.arange(16) + 1) % 5)
    assert float((first - second).detach().abs().mean()) > 0.1


@pytest.mark.parametrize("form", LabelForm)
def test_every_parameter_learns(form: LabelForm) -> None:
    generator = build((2, 8, 8), (4, 8), (3,), form=form)
    latent = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    signals = generator(latent, torch.arange(20) % 5)
    sum(signal.pow(3).mean() for signal in signals).backward()
    still = {n for n, p in generator.named_parameters() if p.grad is None or not p.grad.any()}
    # a constant in front of a normalization cancels: its gradient is zero up to rounding
    assert still <= {n for n in still if n.endswith("bias")}
    assert len([n for n, _ in generator.named_parameters() if n not in still]) > 20


def test_crops_and_mirrors_are_differentiable_and_stay_inside() -> None:
    ramp = torch.linspace(-1, 1, 24).expand(40, 1, 16, 24).clone().requires_grad_()
    made = crop_and_flip(ramp, torch.Generator().manual_seed(0))
    assert made.shape == ramp.shape
    assert float(made.detach().abs().max()) <= 1.0 + 1e-6
    slope = (made[:, 0, 8, 20] - made[:, 0, 8, 4]).detach()
    whole = 2 * 16 / 23  # what 16 of 23 steps cover of -1..1 without a crop
    # a crop of 80 to 100 % of the area at aspect 3/4 to 4/3 has sqrt(0.8 * 3/4) = 77 % of the width
    assert bool((slope.abs() <= whole * 1.001).all())
    assert bool((slope.abs() >= whole * 0.77).all())
    assert 8 <= int((slope < 0).sum()) <= 32  # half of 40 mirrored: +-12 is 3.8 deviations
    made.square().sum().backward()
    assert ramp.grad is not None
    assert bool(ramp.grad.flatten(1).any(1).all())
