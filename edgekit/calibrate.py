"""From the name of a calibration to statistics of a network's tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from edgekit.capture import CapturedModel
from edgekit.errors import CalibrationError, ConfigError
from edgekit.graph import OpKind, op_kind
from edgekit.observe import observe_set, with_notes
from edgekit.passes.unpinned import widen_unpinned
from edgekit.quant.statistics import Statistics
from edgekit.registry import CALIBRATIONS, SYNTHESIZERS, resolve
from edgekit.synthetic import SyntheticSet, load_synthetic
from edgekit.types import Effort, Progress, no_progress
from edgekit.work import multiplications

ENGINE_OF = {Effort.INSTANT: "renorm", Effort.STANDARD: "distill", Effort.BEST: "distill"}
"""What ``auto`` means for each effort, where the network allows it (:func:`choose`)."""

SAMPLES_OF = {"distill": 128}
"""Samples of an engine, where its ranges need more than the usual number to be stable."""
SAMPLES = 64
_CONVERGES = 5e7
"""Multiply-accumulates of one sample up to which distillation converges within minutes on two
cores. There it beats renorm on every target (ResNet-20, ResNet-8); beyond, the few rounds that
there is time for do not (EfficientNet-Lite0: no better than renorm, after three minutes)."""
_BATCH = 32  # samples that pass through the network at once


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


class Synthesizer(Protocol):
    """Makes inputs for a captured network."""

    def synthesize(
        self,
        model: CapturedModel,
        *,
        checkpoint: Path | None = None,
        progress: Progress = no_progress,
    ) -> SyntheticSet:
        """Return the inputs, on the CPU."""
        ...


def check_calibration(name: str) -> None:
    """Refuse a name that cannot work with any network, before work begins.

    Raises:
        ConfigError: there is no such calibration, or its argument is missing or does not exist.
    """
    if name == "auto" or name in SYNTHESIZERS:
        return
    if name.endswith(".npz"):
        if not Path(name).is_file():
            raise ConfigError(
                f"--calibration {name}: there is no such file",
                "'edgekit synthesize MODEL -o FILE.npz' writes one",
            )
        return
    method, colon, argument = name.partition(":")
    resolve({**CALIBRATIONS, **SYNTHESIZERS}, method, "calibration")
    if (method == "images") != bool(colon and argument):
        raise ConfigError(
            f"--calibration {name}: only 'images' takes an argument, and it needs one",
            "for example --calibration images:photos/",
        )
    if argument and not Path(argument).is_dir():
        raise ConfigError(f"--calibration {name}: '{argument}' is not a folder")


def samples_of(name: str) -> int:
    """Return the number of samples that a calibration takes unless a recipe says otherwise."""
    return SAMPLES_OF.get(name, SAMPLES)


def choose(model: CapturedModel, name: str, effort: Effort) -> tuple[str, str]:
    """Return the calibration to use, and why.

    ``auto`` takes the engine of the effort where there is something for it to match: stored
    statistics of a BatchNorm, and a float input to shape; and if the network is small enough for it
    to converge. Otherwise it falls back to renorm.
    """
    if name != "auto":
        return name, "named by --calibration"
    wanted = ENGINE_OF[effort]
    if wanted == "renorm":
        return wanted, f"auto: effort {effort.value} takes seconds"
    if not any(op_kind(node) is OpKind.BATCH_NORM for node in model.graph.graph.nodes):
        return "renorm", f"auto: no BatchNorm whose statistics {wanted} could match"
    if not any(spec.dtype.startswith("float") for spec in model.inputs):
        return "renorm", f"auto: no float input that {wanted} could shape"
    work = multiplications(model.graph)
    if work > _CONVERGES:
        return "renorm", (
            f"auto: {wanted} would not converge in minutes on {work / 1e6:.0f} million "
            f"multiplications a sample; --calibration {wanted} tries"
        )
    return wanted, f"auto: the engine of effort {effort.value}"


def synthesizer(name: str, samples: int, seed: int) -> Synthesizer:
    """Build an engine that makes inputs.

    Raises:
        ConfigError: the name is no such engine; for renorm, why it cannot be one.
    """
    if name == "renorm":
        raise ConfigError(
            "renorm makes no inputs that could be handed on: they mean something only in its own "
            "pass, in which BatchNorms are in batch mode",
            f"use one of {', '.join(SYNTHESIZERS)}",
        )
    made: Synthesizer = resolve(SYNTHESIZERS, name, "engine that makes inputs")(
        samples=samples, seed=seed
    )
    return made


def calibrate(
    model: CapturedModel,
    name: str,
    *,
    samples: int,
    seed: int,
    teacher: CapturedModel | None = None,
    checkpoint: Path | None = None,
    progress: Progress = no_progress,
) -> Statistics:
    """Return statistics of every float activation of a network.

    Args:
        model: the network, on the device where it is to run.
        name: engine, control with its argument, or file of inputs.
        samples: number of samples, where the source makes or draws them.
        seed: seed of everything random.
        teacher: the classifier of the same inputs that the network keeps beside its outputs; what
            engines make is made for it, since it has classes.
        checkpoint: file that a long run is saved to and continued from.
        progress: called as the work advances.

    Raises:
        CalibrationError: the source cannot work with this network, or a tensor is not finite.
    """
    if name.endswith(".npz"):
        made = load_synthetic(Path(name), model.inputs)
    elif name in SYNTHESIZERS:
        engine = synthesizer(name, samples, seed)
        made = engine.synthesize(teacher or model, checkpoint=checkpoint, progress=progress)
    else:
        return _checked(_source(name, samples, seed).observe(model, progress=progress))
    return observe_made(model, made, seed)


def observe_made(model: CapturedModel, made: SyntheticSet, seed: int) -> Statistics:
    """Return statistics of a network on inputs that an engine made for it, or that a file holds.

    Raises:
        CalibrationError: a tensor is not finite.
    """
    statistics = observe_set(model, made, _BATCH, seed=seed)
    if made.engine in SYNTHESIZERS:
        statistics = widen_unpinned(model, statistics)
    return _checked(with_notes(statistics, *made.notes))


def _source(name: str, samples: int, seed: int) -> CalibrationSource:
    method, _, argument = name.partition(":")
    factory = resolve(CALIBRATIONS, method, "calibration")
    source: CalibrationSource = (
        factory(Path(argument), samples=samples, seed=seed)
        if argument
        else factory(samples=samples, seed=seed)
    )
    return source


def _checked(statistics: Statistics) -> Statistics:
    for name, tensor in statistics.tensors.items():
        if not all(map(_is_finite, (tensor.minimum, tensor.maximum))):
            raise CalibrationError(
                f"tensor '{name}' is not finite during calibration "
                f"(range {tensor.minimum} to {tensor.maximum})",
                "the network overflows on its inputs: check --preprocessing and the weights",
            )
    return statistics


def _is_finite(value: float) -> bool:
    return value - value == 0.0
