"""How far a quantized network is from its float network, image by image, and how sure that is."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks._cases import Case
from benchmarks._images import ImageSet
from edgekit.artifacts import lower_for, quantize_observed
from edgekit.capture import CapturedModel
from edgekit.loading import LoadedModel, load
from edgekit.lowering import LoweredModel
from edgekit.options import InputOption, parse_preprocessing
from edgekit.quant.statistics import Statistics
from edgekit.quantized import QuantizedModel
from edgekit.registry import RUNNERS
from edgekit.simulate import simulate
from edgekit.target_choice import target_named
from edgekit.types import Cpu
from edgekit.zoo import save_model

_AT_ONCE = 50  # images that run together
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the sign of the mean is sure."""
        return self.low > 0 or self.high < 0


def logit_kl(reference: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Return the KL divergence of the classes' distributions for each image, in nats.

    Args:
        reference: float logits ``[N, K]``.
        value: quantized logits ``[N, K]``.

    Returns:
        ``[N]`` float64, infinite where a logit is not finite.
    """
    with np.errstate(invalid="ignore"):  # what is not finite is reported as infinitely far
        wanted, found = (_log_softmax(logits) for logits in (reference, value))
        divergence = (np.exp(wanted) * (wanted - found)).sum(1)
    return np.where(np.isfinite(divergence), divergence, np.inf)


def agreement(reference: np.ndarray, value: np.ndarray) -> float:
    """Return on which percentage of images both name the same best class."""
    return 100.0 * float((reference.argmax(1) == value.argmax(1)).mean())


def paired_interval(ours: np.ndarray, theirs: np.ndarray, seed: int = 0) -> Interval:
    """Return the mean of ``ours - theirs`` with an interval from resampled images.

    Args:
        ours: one figure for each image, ``[N]``.
        theirs: the other method's figure for the same images.
        seed: seed of the resampling.
    """
    difference = ours - theirs
    draws = np.random.default_rng(seed).integers(
        len(difference), size=(_RESAMPLES, len(difference))
    )
    low, high = np.percentile(difference[draws].mean(1), [2.5, 97.5])
    return Interval(float(difference.mean()), float(low), float(high))


def loaded_case(case: Case, data: Path) -> LoadedModel:
    """Load a case's network as the command line would."""
    if case.weights is None:
        with tempfile.TemporaryDirectory() as scratch:
            return load(save_model(case.arch.removeprefix("zoo:"), Path(scratch) / "model.pt"))
    return load(
        data / case.weights,
        arch=case.arch,
        inputs=(InputOption(None, case.shape),),
        preprocessing=parse_preprocessing(case.preprocessing),
    )


def captured_case(case: Case, data: Path) -> CapturedModel:
    """Load a case's network, and capture it."""
    return loaded_case(case, data).capture()


def image_tensor(case: Case, data: Path, count: int | None) -> torch.Tensor:
    """Return evaluation images as network inputs, ``[N, 3, H, W]``."""
    images = ImageSet(case, data, count)
    inputs = [images.input(position) for position in range(len(images))]
    return torch.from_numpy(np.concatenate(inputs))


def float_outputs(model: CapturedModel, images: torch.Tensor) -> np.ndarray:
    """Return the float network's first output for every image."""
    parts = [model(images[k : k + _AT_ONCE])[0] for k in range(0, len(images), _AT_ONCE)]
    return torch.cat(parts).numpy()


def simulated_outputs(
    model: CapturedModel,
    statistics: Statistics,
    images: torch.Tensor,
    *,
    targets: Sequence[str] = tuple(RUNNERS),
    scheme: str = "w8a8",
    cpu: Cpu = Cpu.AVX2,
) -> Mapping[str, np.ndarray]:
    """Quantize as the pipeline does, and return each target's first output for every image.

    Args:
        model: the captured network.
        statistics: what a calibration source observed.
        images: network inputs, batch first.
        targets: names of the targets.
        scheme: bit widths.
        cpu: instruction set to be exact on.
    """
    quantized = quantize_observed(model, statistics, scheme)
    return lowered_outputs(quantized, images, targets=targets, cpu=cpu)


def lowered_outputs(
    quantized: QuantizedModel,
    images: torch.Tensor,
    *,
    targets: Sequence[str] = tuple(RUNNERS),
    cpu: Cpu = Cpu.AVX2,
) -> Mapping[str, np.ndarray]:
    """Return each target's first output for every image.

    Args:
        quantized: the neutral quantized model.
        images: network inputs, batch first.
        targets: names of the targets.
        cpu: instruction set to be exact on.
    """
    return {
        name: _simulated(lower_for(quantized, target_named(name), cpu), images) for name in targets
    }


def _simulated(lowered: LoweredModel, images: torch.Tensor) -> np.ndarray:
    starts = range(0, len(images), _AT_ONCE)
    return torch.cat([simulate(lowered, images[k : k + _AT_ONCE])[0] for k in starts]).numpy()


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result
