"""How much work a synthesis may take, counted and not timed: the same run on every machine."""

from __future__ import annotations

from edgekit.capture import CapturedModel
from edgekit.work import multiplications

_WORK = 0.55e12
"""Multiply-accumulates of forward passes that a run may take, backward passes not counted: two to
three minutes for MobileNet-class networks on two cores of 2020's servers."""
_ROUNDS = 30, 100  # least and most updates of each sample


def affordable_rounds(model: CapturedModel, samples: int, window: tuple[int, int] | None) -> int:
    """Return how often each sample can be updated within the budget of work."""
    work = float(multiplications(model.graph)) * samples
    if window is not None:
        height, width = model.inputs[0].shape[2:]
        work *= window[0] * window[1] / (height * width)
    least, most = _ROUNDS
    return int(min(max(_WORK / max(work, 1.0), least), most))
