"""Drawn scenes under drawn camera shake: training data with no download."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edgekit.procedural.camera_shake import shake, shake_kernel
from edgekit.procedural.scenes import draw_scene

from .pictures import Pair

_SCENE, _VALIDATION = 0, 1  # streams of random numbers


@dataclass
class DrawnPictures:
    """A pool of scenes; the even ones are shown blurred, the odd ones sharp.

    Attributes:
        seed: seed of all scenes and kernels.
        scenes: size of the pool; a scene is drawn when it is first asked for.
        side: height and width of a scene, pixels.
        least, most: extent of a shake, pixels.
        held_out: pairs for validation.
    """

    seed: int
    scenes: int = 128
    side: int = 192
    least: float = 3.0
    most: float = 11.0
    held_out: int = 8
    resized: bool = False
    _known: dict[int, Pair] = field(default_factory=dict)

    @property
    def description(self) -> str:
        """What it is."""
        return f"{self.scenes} drawn scenes of {self.side}x{self.side} (dead leaves, writing)"

    @property
    def identity(self) -> str:
        """What decides the pixels."""
        sizes = (self.seed, self.scenes, self.side, self.least, self.most, self.held_out)
        return f"drawn {sizes}"

    def blurred(self, rng: np.random.Generator) -> np.ndarray:
        """Return an even scene, blurred."""
        return self._scene(2 * int(rng.integers(self.scenes // 2)))[0]

    def sharp(self, rng: np.random.Generator) -> np.ndarray:
        """Return an odd scene as it is."""
        return self._scene(2 * int(rng.integers(self.scenes // 2)) + 1)[1]

    def pair(self, rng: np.random.Generator) -> Pair:
        """Return any scene, blurred and sharp."""
        return self._scene(int(rng.integers(self.scenes)))

    def validation(self) -> Sequence[Pair]:
        """Return scenes of their own."""
        return [self._made(_VALIDATION, index) for index in range(self.held_out)]

    def _scene(self, index: int) -> Pair:
        if index not in self._known:
            self._known[index] = self._made(_SCENE, index)
        return self._known[index]

    def _made(self, stream: int, index: int) -> Pair:
        rng = np.random.default_rng([self.seed, stream, index])
        scene = draw_scene(rng, self.side)
        kernel = shake_kernel(rng, float(rng.uniform(self.least, self.most)))
        return shake(scene, kernel), scene
