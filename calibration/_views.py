"""The random view of each large image that one step works on: a smaller, mirrored window.

A step becomes cheaper in proportion to the area, at unchanged scale of detail; and as windows
begin anywhere, no image can settle on a pattern that only one phase of the network's strides sees.
Small images are worked on as a whole: shifting and mirroring them as well brought nothing on the
CIFAR networks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgekit.capture import CapturedModel

from ._teacher import Teacher

WINDOW = 128
"""Side of the window: MobileNet-class networks keep 4 x 4 positions behind their last stride."""


def window_of(model: CapturedModel) -> tuple[int, int] | None:
    """Return the window for a network that takes smaller images, ``None`` for the whole image.

    The network must be fully convolutional: it runs on the window and returns outputs of the same
    rank and, for rank 2, the same shape.
    """
    (spec, *others) = model.inputs
    if others or len(spec.shape) != 4 or min(spec.shape[2:]) < WINDOW * 5 // 4:
        return None
    window = tuple(min(side, WINDOW) for side in spec.shape[2:])
    device = next(iter(model.graph.state_dict().values())).device
    dtype = getattr(torch, spec.dtype)
    small = torch.zeros(*spec.shape[:2], *window, device=device, dtype=dtype)
    try:
        with torch.no_grad():
            found = Teacher(model)(small).outputs
    except (RuntimeError, AssertionError):  # a size is written into the graph
        return None
    same = all(
        value.dim() == len(output.shape) and (value.dim() != 2 or value.shape[1] == output.shape[1])
        for value, output in zip(found, model.outputs, strict=True)
    )
    return (window[0], window[1]) if same else None


def view(
    signals: Sequence[Tensor], window: tuple[int, int] | None, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Return the view of each input: all of it where there is no window."""
    if window is None:
        return tuple(signals)
    return tuple(_view(value, window, generator) for value in signals)


def _view(x: Tensor, window: tuple[int, int], generator: torch.Generator) -> Tensor:
    if bool(torch.rand((), generator=generator) < 0.5):
        x = x.flip(3)
    # starting up to half a window outside and then moving in, the border is seen as often
    corner = [
        int(torch.randint(-side // 2, size - side // 2 + 1, (), generator=generator))
        for side, size in zip(window, x.shape[2:], strict=True)
    ]
    top, left = (
        min(max(at, 0), size - side)
        for at, side, size in zip(corner, window, x.shape[2:], strict=True)
    )
    return x[:, :, top : top + window[0], left : left + window[1]]
