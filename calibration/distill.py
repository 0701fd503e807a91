"""Distillation: inputs themselves are optimised until the network sees its stored statistics.

ZeroQ (Cai et al., CVPR 2020) optimises noise until each batch matches the BatchNorm statistics;
here the whole set matches them together (DGH, arXiv 2410.22110), errors are relative to each
channel's spread, every step sees a shifted window, and the start is structured noise instead of
white. ClusterQ's class terms can be added (:class:`Settings`). What comes out are inputs of the
unaltered network: unlike renorm's they can be handed on, run through a quantized network, or
given to another quantizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.capture import CapturedModel
from edgekit.errors import CalibrationError
from edgekit.memory import is_out_of_memory
from edgekit.synthetic import SyntheticSet
from edgekit.types import Progress, no_progress

from ._distillation import Distillation, Settings

PORTABLE_PADDING, PORTABLE_CE = 20.0, 0.02
"""Weights of ``padding`` and ``losses.ce`` in a set for other quantizers, few values of which were
tried. ``padding`` is for NNCF: on ResNet-20 its logit divergence falls from 43e-3 to 14e-3. ``ce``
lets outputs reach as far as on real images: on ResNet-8 those of ONNX Runtime were cut at 0.5
instead of 7.7, and its divergence falls from 79e-3 to 6e-3."""


@dataclass(frozen=True, slots=True)
class Distill(Settings):
    """The engine; its options are those of :class:`Settings`."""

    def portable(self) -> Distill:
        """Return the engine as it makes sets for other quantizers."""
        losses = replace(self.losses, ce=PORTABLE_CE)
        return replace(self, padding=PORTABLE_PADDING, losses=losses)

    def synthesize(
        self,
        model: CapturedModel,
        *,
        checkpoint: Path | None = None,
        progress: Progress = no_progress,
    ) -> SyntheticSet:
        """Optimise inputs for the network.

        Args:
            model: the network, on the device where the work is done.
            checkpoint: file that the state is written to every few seconds and, if it is there
                already, continued from; it stays, so that a finished run is not repeated.
            progress: told the round, the loss and the time left.

        Returns:
            The inputs on the CPU, labelled with the class that the network sees in them.

        Raises:
            CalibrationError: no BatchNorm or no float input, the loss is not finite from the start,
                memory does not suffice, or the checkpoint belongs to another run.
        """
        options: Settings = self
        notes: list[str] = []
        while True:
            made = _attempt(model, options, checkpoint, progress, notes)
            if made is not None:
                return made
            if checkpoint is not None and checkpoint.exists():
                raise CalibrationError(
                    "distill: memory does not suffice any more",
                    f"close other programs and run the same command again: it goes on from "
                    f"'{checkpoint}'",
                )
            if options.batch == 1:
                raise CalibrationError(
                    "distill: memory does not suffice for a single input",
                    "close other programs, or use --calibration renorm",
                )
            options = replace(options, batch=options.batch // 2)
            notes.append(f"out of memory: continued with {options.batch} inputs at once")


def _attempt(
    model: CapturedModel,
    options: Settings,
    checkpoint: Path | None,
    progress: Progress,
    notes: Sequence[str],
) -> SyntheticSet | None:
    """Return the set, or ``None`` if memory does not suffice."""
    try:
        return Distillation(model, options, checkpoint).finish(progress, notes)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    return None
