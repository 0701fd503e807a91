"""Conditional generators: from a latent vector and a class to signals of zero mean, unit spread.

The network of GDFQ (Xu et al., ECCV 2020), which ClusterQ keeps: a linear layer makes a map of a
quarter of the size, two doublings with convolutions follow, and a last normalization without
affine fixes mean and spread over the batch. Every normalization uses the batch's own statistics,
in training and in sampling alike, so images are always made in whole batches.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SLOPE = 0.2
_DAMPED = 0.8  # eps of the inner normalizations in GDFQ: damps channels of small spread
_EPS = 1e-5
_HIDDEN = 4  # hidden units of the vector form, in widths


class LabelForm(str, enum.Enum):
    """How the class enters: multiplied into the latent, or as scale and shift of each norm."""

    EMBEDDING = "embedding"
    CONDITIONAL = "conditional"


class Generator(nn.Module):
    """Generates every shaped input of a network from one latent vector and one class.

    Args:
        shapes: shape of one sample of each input: ``[C, H, W]``, ``[C, L]`` or anything else,
            which is generated as one flat vector.
        classes: number of classes.
        latent: length of the latent vector.
        width: channels of the first map; GDFQ has 128.
        form: how the class enters.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        classes: int,
        *,
        latent: int,
        width: int,
        form: LabelForm,
    ) -> None:
        super().__init__()
        multiplied = form is LabelForm.EMBEDDING
        self.embedding = nn.Embedding(classes, latent) if multiplied else None
        tables = None if multiplied else classes
        self.parts = nn.ModuleList(
            _MapGenerator(shape, tables, latent, width)
            if len(shape) in (2, 3)
            else _VectorGenerator(shape, tables, latent, width)
            for shape in shapes
        )

    def forward(self, latent: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """Return the signals ``[N, *shape]`` of each input for latents ``[N, d]``, labels ``[N]``.

        ``N`` is at least 2: the spread is that of the batch.
        """
        if self.embedding is not None:
            latent = latent * self.embedding(labels)
        return tuple(part(latent, labels) for part in self.parts)


class _Norm(nn.Module):
    """Batch normalization by the batch itself, with an affine for each class if there are any."""

    def __init__(self, channels: int, eps: float, classes: int | None) -> None:
        super().__init__()
        rows = 1 if classes is None else classes
        self.gain = nn.Parameter(torch.ones(rows, channels))
        self.shift = nn.Parameter(torch.zeros(rows, channels))
        self._eps = eps

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        if len(self.gain) == 1:
            return F.batch_norm(x, None, None, self.gain[0], self.shift[0], True, 0.0, self._eps)
        space = (1,) * (x.dim() - 2)
        gain, shift = (t[labels].reshape(*x.shape[:2], *space) for t in (self.gain, self.shift))
        return _normalized(x, self._eps) * gain + shift


class _MapGenerator(nn.Module):
    """The generator of images ``[C, H, W]`` and of series ``[C, L]``."""

    def __init__(
        self, shape: tuple[int, ...], classes: int | None, latent: int, width: int
    ) -> None:
        super().__init__()
        channels, *self._size = shape
        self._half = [math.ceil(side / 2) for side in self._size]
        self._base = [width, *(math.ceil(side / 4) for side in self._size)]
        conv = nn.Conv2d if len(self._size) == 2 else nn.Conv1d
        narrow = max(width // 2, 1)
        self.linear = nn.Linear(latent, math.prod(self._base))
        self.first = _Norm(width, _EPS, classes)
        self.inner = conv(width, width, 3, padding=1)
        self.second = _Norm(width, _DAMPED, classes)
        self.outer = conv(width, narrow, 3, padding=1)
        self.third = _Norm(narrow, _DAMPED, classes)
        self.last = conv(narrow, channels, 3, padding=1)

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        x = self.linear(latent).reshape(len(latent), *self._base)
        x = F.interpolate(self.first(x, labels), self._half)
        x = F.leaky_relu(self.second(self.inner(x), labels), _SLOPE)
        x = F.interpolate(x, self._size)
        x = F.leaky_relu(self.third(self.outer(x), labels), _SLOPE)
        return _normalized(torch.tanh(self.last(x)), _EPS)


class _VectorGenerator(nn.Module):
    """The generator of everything without axes along which neighbours resemble each other."""

    def __init__(
        self, shape: tuple[int, ...], classes: int | None, latent: int, width: int
    ) -> None:
        super().__init__()
        self._shape = shape
        hidden = _HIDDEN * width
        self.linear = nn.Linear(latent, hidden)
        self.first = _Norm(hidden, _EPS, classes)
        self.inner = nn.Linear(hidden, hidden)
        self.second = _Norm(hidden, _DAMPED, classes)
        self.last = nn.Linear(hidden, math.prod(shape))

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(self.linear(latent), labels), _SLOPE)
        x = F.leaky_relu(self.second(self.inner(x), labels), _SLOPE)
        return _normalized(self.last(x), _EPS).reshape(len(latent), *self._shape)


def _normalized(x: Tensor, eps: float) -> Tensor:
    return F.batch_norm(x, None, None, None, None, True, 0.0, eps)
