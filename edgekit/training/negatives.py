"""The pictures that FCL-GAN contrasts with: a buffer of descriptors of one domain.

The paper's code keeps the pictures; their descriptors never change, so these alone are kept.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_REPLACED = 0.5  # probability that a picture that comes by takes a place


class NegativesBuffer:
    """Descriptors ``[B, 4]`` of real pictures, replaced at random as training goes on."""

    def __init__(self, descriptors: Tensor) -> None:
        self.descriptors = descriptors.detach().clone()

    def replace(self, descriptors: Tensor, rng: np.random.Generator) -> None:
        """Let each of ``[N, 4]`` take a random place with probability one half."""
        for descriptor in descriptors.detach():
            if rng.uniform() < _REPLACED:
                self.descriptors[int(rng.integers(len(self.descriptors)))] = descriptor

    def draw(self, samples: int, each: int, rng: np.random.Generator) -> Tensor:
        """Return ``[samples, each, 4]``, all from different places."""
        places = rng.permutation(len(self.descriptors))[: samples * each]
        index = torch.from_numpy(places).to(self.descriptors.device)
        return self.descriptors[index].reshape(samples, each, -1)
