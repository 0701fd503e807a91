"""Training of FCL-GAN: two generators and two discriminators, no pair of pictures.

With ``S`` the generator from blurred to sharp and ``B`` the one back, ``b`` a blurred picture and
``s`` a sharp one of other scenes, ``s' = S(b)``, ``b' = B(s)``::

    L_G    = L_adv + 10 L_cycle + 0.1 L_contrast + 0.1 L_tv
    L_adv  = 1/2 [mean (D_B(b') - 1)^2 + mean (D_S(s') - 1)^2]
    L_cycle = 1/2 [mean |B(s') - b| + mean |S(b') - s|]
    L_tv   = mean |d/dx s'| + mean |d/dy s'|
    L_contrast = 1/2 [InfoNCE(b'; b; sharp ones) + InfoNCE(s'; s; blurred ones)]
    L_D    = 1/2 [mean D(fake)^2 + mean (D(real) - 1)^2]     for each discriminator

The order is that of the released code: both cycles forward, then D_B, D_S, and both generators
with the discriminators fixed; Adam with lr 1e-4 and betas 0.5 and 0.999, halved at each quarter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.models.fcl_gan import Generator, PatchDiscriminator, start_as_identity

from .frequency_contrast import STEEPNESS, frequency_descriptor, info_nce
from .negatives import NegativesBuffer
from .pictures import BlurredPictures, crops
from .restoration_options import Contrast, RestorationOptions
from .restorer import METRIC, Restorer

_NEGATIVES = 8  # for each sample
_START_CROPS = 32
_STEP, _FILL, _START = 1, 2, 4  # streams of random numbers


class FclGan:
    """A :class:`~edgekit.training.loop.TrainingTask`: what it returns is the deblurring half."""

    metric = METRIC

    def __init__(
        self,
        build: Callable[[], Generator],
        pictures: BlurredPictures,
        options: RestorationOptions,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        self._pictures, self._options = pictures, options
        self._seed, self._device = seed, device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._sharpen, self._blur = build().to(device), build().to(device)
            self._judge_sharp = PatchDiscriminator().to(device)
            self._judge_blurred = PatchDiscriminator().to(device)
        self.restorer = Restorer(self._sharpen, pictures, options, seed=seed)
        if options.identity_start:
            blurred, sharp = self._couple(np.random.default_rng([seed, _START]), _START_CROPS)
            start_as_identity(self._sharpen, blurred)
            start_as_identity(self._blur, sharp)
        self._adam = [
            self._optimizer(self._sharpen, self._blur),
            self._optimizer(self._judge_blurred),
            self._optimizer(self._judge_sharp),
        ]
        self._buffers = self._filled_buffers()

    def step(self, index: int, spent: float) -> Mapping[str, float]:
        """Take one step of discriminators and generators."""
        options = self._options
        rng = np.random.default_rng([self._seed, _STEP, index])
        blurred, sharp = self._couple(rng, options.batch)
        for adam in self._adam:
            for group in adam.param_groups:
                group["lr"] = options.rate(spent)
        for network in (self._sharpen, self._blur):
            network.train(not options.fixed_norms)
        restored, smeared = self._sharpen.restore(blurred), self._blur.restore(sharp)
        blurred_again, sharp_again = self._blur.restore(restored), self._sharpen.restore(smeared)
        judged = self._judge(1, self._judge_blurred, smeared, blurred)
        judged = 0.5 * (judged + self._judge(2, self._judge_sharp, restored, sharp))
        with _frozen(self._judge_blurred, self._judge_sharp):
            fooled = _from_one(self._judge_blurred(smeared)) + _from_one(
                self._judge_sharp(restored)
            )
            terms = {
                "adversarial": 0.5 * fooled,
                "cycle": 0.5 * (_distance(blurred_again, blurred) + _distance(sharp_again, sharp)),
                "contrast": self._contrast(blurred, sharp, restored, smeared, rng),
                "variation": total_variation(restored),
            }
            if options.identity > 0:
                terms["identity"] = 0.5 * (
                    _distance(self._sharpen.restore(sharp), sharp)
                    + _distance(self._blur.restore(blurred), blurred)
                )
            weights = {
                "adversarial": 1.0,
                "cycle": options.cycle,
                "contrast": options.contrast_weight,
                "variation": options.variation,
                "identity": options.identity,
            }
            total = sum(
                (weights[name] * term for name, term in terms.items()), blurred.new_zeros(())
            )
            self._adam[0].zero_grad()
            total.backward()
        self._adam[0].step()
        return {**{name: float(term.detach()) for name, term in terms.items()}, "judges": judged}

    def validate(self) -> float:
        """Return the mean PSNR of restored pictures, dB."""
        return self.restorer.psnr()

    def weights(self) -> dict[str, Tensor]:
        """Return the generator from blurred to sharp."""
        return self.restorer.weights()

    def state(self) -> dict[str, Any]:
        """Return networks, optimisers and buffers."""
        return {
            "networks": [network.state_dict() for network in self._networks],
            "adam": [adam.state_dict() for adam in self._adam],
            "buffers": [buffer.descriptors for buffer in self._buffers],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        for network, saved in zip(self._networks, state["networks"], strict=True):
            network.load_state_dict(saved)
        for adam, saved in zip(self._adam, state["adam"], strict=True):
            adam.load_state_dict(saved)
        for buffer, saved in zip(self._buffers, state["buffers"], strict=True):
            buffer.descriptors = saved.to(self._device)

    @property
    def _networks(self) -> tuple[nn.Module, ...]:
        return self._sharpen, self._blur, self._judge_blurred, self._judge_sharp

    def _optimizer(self, *networks: nn.Module) -> torch.optim.Adam:
        parameters = [p for network in networks for p in network.parameters()]
        return torch.optim.Adam(parameters, lr=self._options.lr, betas=(0.5, 0.999))

    def _couple(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        source = self._pictures

        def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
            return source.blurred(rng), source.sharp(rng)

        blurred, sharp = crops(draw, rng, count, self._options.crop, source.resized)
        return blurred.to(self._device), sharp.to(self._device)

    def _judge(self, index: int, judge: nn.Module, fake: Tensor, real: Tensor) -> float:
        """Let one discriminator learn, and return its loss."""
        loss = 0.5 * (judge(fake.detach()).square().mean() + _from_one(judge(real)))
        self._adam[index].zero_grad()
        loss.backward()
        self._adam[index].step()
        return float(loss.detach())

    def _filled_buffers(self) -> tuple[NegativesBuffer, NegativesBuffer]:
        """Return the buffers of blurred and of sharp pictures, full of real ones."""
        count = 2 * _NEGATIVES * self._options.batch
        rng = np.random.default_rng([self._seed, _FILL])
        blurred, sharp = self._couple(rng, count)
        return NegativesBuffer(self._described(blurred)), NegativesBuffer(self._described(sharp))

    def _described(self, images: Tensor) -> Tensor:
        hard = self._options.contrast is Contrast.RELEASED
        return frequency_descriptor(images, None if hard else STEEPNESS)

    def _contrast(
        self,
        blurred: Tensor,
        sharp: Tensor,
        restored: Tensor,
        smeared: Tensor,
        rng: np.random.Generator,
    ) -> Tensor:
        if self._options.contrast is Contrast.OFF:
            return restored.new_zeros(())
        real_blurred, real_sharp = self._described(blurred), self._described(sharp)
        negatives = []
        for buffer, real in zip(self._buffers, (real_blurred, real_sharp), strict=True):
            buffer.replace(real, rng)
            negatives.append(buffer.draw(len(real), _NEGATIVES, rng))
        loss = 0.5 * (
            info_nce(self._described(smeared), real_blurred, negatives[1])
            + info_nce(self._described(restored), real_sharp, negatives[0])
        )
        return loss.detach() if self._options.contrast is Contrast.RELEASED else loss


def total_variation(images: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbours along each of the last two axes, summed."""
    across = (images[..., 1:] - images[..., :-1]).abs().mean()
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
    return across + down


def _distance(first: Tensor, second: Tensor) -> Tensor:
    return (first - second).abs().mean()


def _from_one(scores: Tensor) -> Tensor:
    return (scores - 1.0).square().mean()


@contextmanager
def _frozen(*networks: nn.Module) -> Iterator[None]:
    """Let gradients pass through, but not into, some networks."""
    for network in networks:
        network.requires_grad_(False)
    try:
        yield
    finally:
        for network in networks:
            network.requires_grad_(True)
