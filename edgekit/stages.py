"""The stages of a run: their share of its progress, their time, and their threads."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch

from edgekit.capture import CapturedModel
from edgekit.errors import ConfigError
from edgekit.types import Progress


@dataclass(frozen=True)
class Stages:
    """Timer of the stages, and the sink of their progress. ``weights`` add up to one."""

    progress: Progress
    seconds: dict[str, float]

    _PLAN: ClassVar[Mapping[str, tuple[float, float]]] = {
        "load": (0.00, 0.03),
        "capture": (0.03, 0.10),
        "calibrate": (0.10, 0.40),
        "allocate": (0.40, 0.48),
        "quantize": (0.48, 0.60),
        "export": (0.60, 0.75),
        "verify": (0.75, 1.00),
    }

    @contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        """Time a stage; the yielded callable takes the stage's own fraction."""
        begin, end = self._PLAN[name]
        self.progress(name, begin)
        started = time.perf_counter()

        def inner(text: str, fraction: float) -> None:
            self.progress(text, begin + (end - begin) * min(max(fraction, 0.0), 1.0))

        yield inner
        self.seconds[name] = round(time.perf_counter() - started, 3)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compute_device(name: str) -> torch.device:
    """Return the device that ``auto``, ``cpu`` or ``cuda`` stands for.

    Raises:
        ConfigError: another name, or there is no CUDA device.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device {name}: auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device", "use --device cpu")
    # auto: the usual engines take minutes on a CPU, and give the same result on every machine
    return torch.device("cuda" if name == "cuda" else "cpu")


@contextmanager
def on_device(model: CapturedModel, device: torch.device) -> Iterator[None]:
    """Let a network's parameters lie on a device meanwhile."""
    model.graph.to(device)
    try:
        yield
    finally:
        model.graph.to("cpu")
