"""A network that restores pictures, beside the pictures it is judged by."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from edgekit.models.batchnorm import recalibrate, restate
from edgekit.models.fcl_gan import Generator

from .pictures import BlurredPictures, crops, to_tensor
from .restoration_options import RestorationOptions

METRIC = "PSNR (dB)"
_SIDE = 256  # of what is validated; larger pictures are cut at their centre
_BATCHES, _BATCH = 4, 8  # of crops that BatchNorm is measured on
_RECALIBRATION = 3  # stream of random numbers


class Restorer:
    """A generator, the metric of its output, and BatchNorm statistics as it will be used."""

    def __init__(
        self,
        network: Generator,
        pictures: BlurredPictures,
        options: RestorationOptions,
        *,
        seed: int,
    ) -> None:
        self.network, self._fixed = network, options.fixed_norms
        crop = options.crop
        rng = np.random.default_rng([seed, _RECALIBRATION])
        device = next(network.parameters()).device
        self._pairs = [
            tuple(to_tensor([_centre(picture)]).to(device) for picture in pair)
            for pair in pictures.validation()
        ]
        self._blurred = [
            crops(lambda r: (pictures.blurred(r),), rng, _BATCH, crop, pictures.resized)[0].to(
                device
            )
            for _ in range(_BATCHES)
        ]

    @property
    def blurred(self) -> Tensor:
        """Blurred crops ``[N, 3, crop, crop]`` that statistics are measured on."""
        return torch.cat(self._blurred)

    def blurred_psnr(self) -> float:
        """Return the mean PSNR of the blurred pictures themselves, dB."""
        return float(np.mean([_psnr(blurred, sharp) for blurred, sharp in self._pairs]))

    def psnr(self) -> float:
        """Return the mean PSNR of restored pictures, dB; BatchNorm is measured, if not fixed."""
        self.network.eval()
        if not self._fixed:
            recalibrate(self.network, self._blurred)
        with torch.no_grad():
            scores = [_psnr(self.network.restore(b), sharp) for b, sharp in self._pairs]
        return float(np.mean(scores))

    def weights(self) -> dict[str, Tensor]:
        """Return copies of all weights on the CPU, with statistics of blurred crops."""
        network = copy.deepcopy(self.network)
        if self._fixed:
            restate(network, self._blurred)
        state = network.state_dict()
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}


def _centre(picture: np.ndarray) -> np.ndarray:
    """Return the centre, no side longer than 256, both multiples of four."""
    height, width = (min(side, _SIDE) // 4 * 4 for side in picture.shape[:2])
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    return picture[top : top + height, left : left + width]


def _psnr(picture: Tensor, sharp: Tensor) -> float:
    """Return the PSNR of 8-bit pictures; as in the paper, values are cut and not rounded."""
    error = (picture * 255.0).floor() - (sharp * 255.0).round()
    if not bool(error.isfinite().all()):
        return float("nan")
    return float(20.0 * np.log10(255.0) - 10.0 * torch.log10(error.square().mean().clamp(1e-10)))
