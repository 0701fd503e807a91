"""From the name of a calibration to the source that does it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from edgekit.capture import CapturedModel
from edgekit.errors import CalibrationError, ConfigError
from edgekit.quant.statistics import Statistics
from edgekit.registry import CALIBRATIONS, resolve
from edgekit.types import Effort, Progress, no_progress

ENGINE_OF = {Effort.INSTANT: "renorm", Effort.STANDARD: "renorm", Effort.BEST: "renorm"}
"""What ``auto`` means for each effort. Slower engines take over the higher levels as they come."""


class CalibrationSource(Protocol):
    """Observes a captured network and returns the statistics of its tensors."""

    def observe(
        self,
        model: CapturedModel,
        *,
        second_moments: Sequence[str] = (),
        progress: Progress = no_progress,
    ) -> Statistics:
        """Return statistics of every float activation of ``model``."""
        ...


def resolve_calibration(name: str, effort: Effort) -> str:
    """Return the engine that ``auto`` stands for, or ``name`` itself.

    Raises:
        ConfigError: there is no such calibration, or its argument is missing.
    """
    if name == "auto":
        return ENGINE_OF[effort]
    method, colon, argument = name.partition(":")
    resolve(CALIBRATIONS, method, "calibration")
    if (method == "images") != bool(colon and argument):
        raise ConfigError(
            f"--calibration {name}: only 'images' takes an argument, and it needs one",
            "for example --calibration images:photos/",
        )
    if argument and not Path(argument).is_dir():
        raise ConfigError(f"--calibration {name}: '{argument}' is not a folder")
    return name


def calibration_source(name: str, samples: int, seed: int) -> CalibrationSource:
    """Build the source that a resolved name stands for."""
    method, _, argument = name.partition(":")
    factory = resolve(CALIBRATIONS, method, "calibration")
    source: CalibrationSource = (
        factory(Path(argument), samples=samples, seed=seed)
        if argument
        else factory(samples=samples, seed=seed)
    )
    return source


def check_statistics(statistics: Statistics) -> None:
    """Refuse statistics that are not finite.

    Raises:
        CalibrationError: a tensor holds NaN or infinity.
    """
    for name, tensor in statistics.tensors.items():
        if not all(map(_is_finite, (tensor.minimum, tensor.maximum))):
            raise CalibrationError(
                f"tensor '{name}' is not finite during calibration "
                f"(range {tensor.minimum} to {tensor.maximum})",
                "the network overflows on its inputs: check --preprocessing and the weights",
            )


def _is_finite(value: float) -> bool:
    return value - value == 0.0
