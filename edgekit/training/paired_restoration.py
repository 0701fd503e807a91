"""The control: the same network learns from pairs, by the mean absolute error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgekit.models.fcl_gan import Generator, start_as_identity

from .pictures import BlurredPictures, crops
from .restoration_options import RestorationOptions
from .restorer import METRIC, Restorer

_STEP = 1  # stream of random numbers


class PairedRestoration:
    """A :class:`~edgekit.training.loop.TrainingTask`: ``mean |S(blurred) - sharp|`` over pairs.

    What it reaches says how much the network and the budget have in them, whatever the loss.
    """

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
            self._network = build().to(device)
        self._adam = torch.optim.Adam(self._network.parameters(), lr=options.lr)
        self.restorer = Restorer(self._network, pictures, options, seed=seed)
        if options.identity_start:
            start_as_identity(self._network, self.restorer.blurred)

    def step(self, index: int, spent: float) -> Mapping[str, float]:
        """Take one step."""
        rng = np.random.default_rng([self._seed, _STEP, index])
        options, source = self._options, self._pictures
        blurred, sharp = crops(source.pair, rng, options.batch, options.crop, source.resized)
        self._adam.param_groups[0]["lr"] = options.rate(spent)
        self._network.train(not options.fixed_norms)
        restored = self._network.restore(blurred.to(self._device))
        loss = (restored - sharp.to(self._device)).abs().mean()
        self._adam.zero_grad()
        loss.backward()
        self._adam.step()
        return {"distance": float(loss.detach())}

    def validate(self) -> float:
        """Return the mean PSNR of restored pictures, dB."""
        return self.restorer.psnr()

    def weights(self) -> dict[str, Tensor]:
        """Return the network."""
        return self.restorer.weights()

    def state(self) -> dict[str, Any]:
        """Return network and optimiser."""
        return {"network": self._network.state_dict(), "adam": self._adam.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        self._network.load_state_dict(state["network"])
        self._adam.load_state_dict(state["adam"])
