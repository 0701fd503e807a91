"""How close a quantized network's output is to the float network's, task by task.

Percentages run from 0 to 100. A sample whose output is not finite agrees with nothing: it scores 0
and its SQNR is minus infinity, so that a broken artifact cannot pass by comparing NaN with NaN.
"""

from __future__ import annotations

import math

import numpy as np

from edgekit.errors import VerificationError
from edgekit.types import Task

_TOP_ITEMS = 10  # the length at which recommendation papers usually cut a ranking


def agreement_percent(task: Task, reference: np.ndarray, value: np.ndarray) -> float:
    """Return the mean of :func:`sample_agreement` over the samples.

    Args:
        task: what the output means.
        reference: float network's output, ``[N, ...]``.
        value: quantized network's output, same shape.
    """
    return float(np.mean(sample_agreement(task, reference, value)))


def sample_agreement(task: Task, reference: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Score each sample from 0 to 100; the mean does not depend on how batches were cut.

    Classification: 100 where the top-1 class is the same (a share of positions if there are
    several, the sign for a single logit). Embedding: cosine. Ranking: overlap of the ten best
    items, of the better half where there are fewer than twenty. Image-to-image and other:
    ``1 - ||error|| / ||reference||``.

    Args:
        task: what the output means.
        reference: float network's output, ``[N, ...]``; classes, features or items on axis 1.
        value: quantized network's output, same shape.

    Returns:
        ``[N]`` float64.

    Raises:
        VerificationError: the shapes differ or there is no sample.
    """
    _check_shapes(reference, value)
    ref = reference.astype(np.float64).reshape(reference.shape[0], -1)
    val = value.astype(np.float64).reshape(value.shape[0], -1)
    finite = np.isfinite(val).all(axis=1) & np.isfinite(ref).all(axis=1)
    score = np.zeros(len(ref))
    if not finite.any():
        return score
    if task is Task.CLASSIFICATION:
        part = _top1_match(reference[finite], value[finite])
    elif task is Task.EMBEDDING:
        part = _cosine(ref[finite], val[finite])
    elif task is Task.RANKING:
        part = _top_overlap(ref[finite], val[finite])
    else:
        part = _relative_closeness(ref[finite], val[finite])
    score[finite] = 100.0 * np.clip(part, 0.0, 1.0)
    return score


def sqnr_db(reference: np.ndarray, value: np.ndarray) -> float:
    """Signal to quantization noise ratio over the whole tensor, in dB.

    Infinite where the tensors are identical, minus infinite where a value is not finite.
    """
    _check_shapes(reference, value)
    ref, error = _signal_and_error(reference, value)
    return _decibel(float(np.sum(ref * ref)), float(np.sum(error * error)))


def psnr_db(reference: np.ndarray, value: np.ndarray, *, peak: float | None = None) -> float:
    """Peak signal to noise ratio of images, in dB.

    Args:
        reference: float network's images.
        value: quantized network's images, same shape.
        peak: difference of the brightest and the darkest possible value; the one found in
            ``reference`` if ``None``.
    """
    _check_shapes(reference, value)
    ref, error = _signal_and_error(reference, value)
    span = float(ref.max() - ref.min()) if peak is None else peak
    return _decibel(span * span, float(np.mean(error * error)))


def _check_shapes(reference: np.ndarray, value: np.ndarray) -> None:
    if reference.shape != value.shape:
        raise VerificationError(
            f"outputs cannot be compared: float {reference.shape}, quantized {value.shape}"
        )
    if reference.ndim == 0 or reference.size == 0:
        raise VerificationError(f"outputs of shape {reference.shape} hold no sample to compare")


def _signal_and_error(reference: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ref = reference.astype(np.float64)
    val = value.astype(np.float64)
    # inf - inf is a legitimate NaN here: _decibel turns it into minus infinity.
    with np.errstate(invalid="ignore"):
        return ref, val - ref


def _decibel(signal: float, noise: float) -> float:
    if not math.isfinite(signal) or not math.isfinite(noise):
        return -math.inf
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0.0 else -math.inf


def _top1_match(reference: np.ndarray, value: np.ndarray) -> np.ndarray:
    classes = reference.shape[1] if reference.ndim > 1 else 1
    ref = reference.reshape(len(reference), classes, -1)
    val = value.reshape(len(value), classes, -1)
    if classes == 1:  # a single logit decides by its sign
        same = (ref[:, 0] > 0) == (val[:, 0] > 0)
    else:
        same = ref.argmax(axis=1) == val.argmax(axis=1)
    share: np.ndarray = same.mean(axis=1, dtype=np.float64)
    return share


def _cosine(ref: np.ndarray, val: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(ref, axis=1) * np.linalg.norm(val, axis=1)
    dot = np.sum(ref * val, axis=1)
    both_zero = (ref == 0).all(axis=1) & (val == 0).all(axis=1)
    cosine = np.divide(dot, norms, out=np.zeros_like(dot), where=norms > 0)
    return np.where(both_zero, 1.0, cosine)


def _top_overlap(ref: np.ndarray, val: np.ndarray) -> np.ndarray:
    # With ten items or fewer, the ten best are all of them and any order would score 100.
    count = min(_TOP_ITEMS, max(1, ref.shape[1] // 2))
    best_ref = np.argsort(-ref, axis=1, kind="stable")[:, :count]
    best_val = np.argsort(-val, axis=1, kind="stable")[:, :count]
    common = (best_ref[:, :, None] == best_val[:, None, :]).any(axis=2)
    share: np.ndarray = common.mean(axis=1, dtype=np.float64)
    return share


def _relative_closeness(ref: np.ndarray, val: np.ndarray) -> np.ndarray:
    error = np.linalg.norm(val - ref, axis=1)
    size = np.linalg.norm(ref, axis=1)
    missing = np.where(error > 0, np.inf, 0.0)  # a zero reference is met exactly or not at all
    closeness: np.ndarray = 1.0 - np.divide(error, size, out=missing, where=size > 0)
    return closeness
