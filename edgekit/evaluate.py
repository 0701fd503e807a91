"""Accuracy of a result directory on labelled images, target by target.

One pass over the data: each image is decoded once and fed to the float reference and to every
target. What a target's own runtime cannot run here is simulated in ONNX Runtime where the artifact
is an ONNX file, and labelled so; else its figures are ``None`` with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.datasets import ImageDataset, open_dataset
from edgekit.errors import (
    ConfigError,
    LoadError,
    MissingDependencyError,
    UnsupportedError,
    VerificationError,
)
from edgekit.fidelity import sample_agreement
from edgekit.manifest import Manifest, TargetEntry, read_manifest, verify_files
from edgekit.preprocess import fit_input, preprocess
from edgekit.runners import open_model
from edgekit.runners.tensors import ArtifactRunner, infer_batches
from edgekit.types import InputSpec, Preprocessing, Progress, Task, no_progress

_BATCH_SIZE = 8  # large enough to fill the kernels, small enough for a device's memory


@dataclass(frozen=True, slots=True)
class TargetScore:
    """Figures of one target, in percent from 0 to 100.

    Attributes:
        top1: share of images whose best class is the label; ``None`` unless a classifier ran.
        agreement: agreement with the float network, by the task's metric.
        executed: whether the target's own runtime ran the artifact.
        reason: why it did not, or why figures are missing.
        n: number of images.
    """

    top1: float | None
    agreement: float | None
    executed: bool
    reason: str | None
    n: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "top1": self.top1,
            "agreement": self.agreement,
            "executed": self.executed,
            "reason": self.reason,
            "n": self.n,
        }


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """Figures of all targets, and the float network's own top-1."""

    targets: Mapping[str, TargetScore]
    float_top1: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "targets": {name: score.to_dict() for name, score in self.targets.items()},
            "float": {"top1": self.float_top1},
        }


def evaluate(
    result_dir: Path,
    data: Path,
    *,
    targets: Sequence[str] | None = None,
    classes: Path | None = None,
    limit: int | None = None,
    batch_size: int = _BATCH_SIZE,
    progress: Progress = no_progress,
) -> EvaluationReport:
    """Run every target of a result over a data set.

    Args:
        result_dir: what ``edgekit quantize --out`` wrote.
        data: images, in one of the layouts of :mod:`edgekit.datasets`.
        targets: names of the targets to run; all if ``None``.
        classes: file of class names, for class folders.
        limit: use that many images, spread evenly over the data set.
        batch_size: images at a time.
        progress: called after each batch.

    Raises:
        ConfigError: an option or the data set does not fit the network.
        LoadError: the result is damaged, or an image cannot be decoded.
        UnsupportedError: the network does not take one image, or no target can run here.
        VerificationError: an artifact failed while running.
    """
    manifest = read_manifest(result_dir)
    spec, preprocessing = _image_input(manifest)
    entries = [manifest.target(name) for name in targets] if targets else list(manifest.targets)
    wanted = [file for file in manifest.files if file.path == manifest.reference]
    verify_files(result_dir, [*wanted, *(file for entry in entries for file in entry.files)])
    dataset = open_dataset(
        data,
        num_classes=_num_classes(manifest),
        classes=classes,
        labelled=manifest.task is Task.CLASSIFICATION,
    )
    indices = _spread(len(dataset), limit)
    with ExitStack() as stack:
        reference = _open_reference(stack, result_dir / manifest.reference)
        lanes = [_open_target(stack, entry, result_dir) for entry in entries]
        if all(lane.runner is None for lane in lanes):
            reasons = "; ".join(f"{lane.name}: {lane.reason}" for lane in lanes)
            raise UnsupportedError(f"no target of '{result_dir}' can run here ({reasons})")
        done = 0
        for images, labels in _batches(dataset, indices, preprocessing, batch_size):
            feeds = {spec.name: fit_input(images, spec)}
            expected = reference.run(manifest, feeds, labels, batch_size, None)
            for lane in lanes:
                lane.run(manifest, feeds, labels, batch_size, expected)
            done += len(images)
            progress("evaluate", done / len(indices))
    return EvaluationReport({lane.name: lane.score() for lane in lanes}, reference.score().top1)


@dataclass(slots=True)
class _Lane:
    """A runner and what has been counted of it so far."""

    name: str
    runner: ArtifactRunner | None
    executed: bool = False
    reason: str | None = None
    count: int = 0
    correct: list[bool] = field(default_factory=list)
    agreement: list[float] = field(default_factory=list)

    def run(
        self,
        manifest: Manifest,
        feeds: Mapping[str, np.ndarray],
        labels: Sequence[int] | None,
        batch_size: int,
        expected: np.ndarray | None,
    ) -> np.ndarray | None:
        """Run one batch, count it, and return the first output."""
        if self.runner is None:
            return None
        output = manifest.outputs[0].name
        values = infer_batches(self.runner, feeds, batch_size)
        if output not in values:
            raise VerificationError(
                f"target '{self.name}' has the outputs {sorted(values)}, expected '{output}'"
            )
        value = values[output]
        self.count += len(value)
        if labels is not None and manifest.task is Task.CLASSIFICATION:
            self.correct.extend(_hits(value, labels))
        if expected is not None:
            self.agreement.extend(sample_agreement(manifest.task, expected, value).tolist())
        return value

    def score(self) -> TargetScore:
        """Return the figures over everything that was counted."""
        return TargetScore(
            top1=100.0 * sum(self.correct) / self.count if self.correct else None,
            agreement=sum(self.agreement) / self.count if self.agreement else None,
            executed=self.executed,
            reason=self.reason,
            n=self.count,
        )


def _open_reference(stack: ExitStack, path: Path) -> _Lane:
    from edgekit.runners.onnxruntime import OnnxRuntimeRunner
    from edgekit.runners.openvino import OpenVinoRunner

    # OpenVINO would choose bfloat16 on some CPUs: a float reference must not depend on that.
    runners: tuple[ArtifactRunner, ...] = (
        OnnxRuntimeRunner(path),
        OpenVinoRunner(path, inference_precision="f32"),
    )
    for runner in runners:
        try:
            return _Lane("float", stack.enter_context(runner))
        except MissingDependencyError:  # noqa: PERF203 - two turns at most
            continue
    return _Lane("float", None)


def _open_target(stack: ExitStack, entry: TargetEntry, result_dir: Path) -> _Lane:
    model = result_dir / entry.model
    try:
        return _Lane(entry.name, stack.enter_context(open_model(entry.name, model)), executed=True)
    except LoadError as error:
        return _Lane(entry.name, None, reason=error.message)
    except (MissingDependencyError, UnsupportedError) as error:
        reason = error.message
    if model.suffix != ".onnx":
        return _Lane(entry.name, None, reason=reason)
    try:
        runner = stack.enter_context(open_model(entry.name, model, simulate=True))
    except MissingDependencyError:
        return _Lane(entry.name, None, reason=f"{reason}; no ONNX Runtime to simulate it")
    except LoadError as error:
        return _Lane(entry.name, None, reason=f"{reason}; {error.message}")
    return _Lane(entry.name, runner, reason=f"{reason}; its ONNX file ran in ONNX Runtime instead")


def _image_input(manifest: Manifest) -> tuple[InputSpec, Preprocessing]:
    spec = manifest.inputs[0]
    if len(manifest.inputs) != 1 or len(spec.shape) != 4:
        shapes = ", ".join(f"{item.name} {list(item.shape)}" for item in manifest.inputs)
        raise UnsupportedError(f"evaluation needs a network with one image input, not {shapes}")
    if manifest.preprocessing is None:
        raise ConfigError(
            "the result does not say how images are preprocessed",
            "quantize again with --preprocessing mean=...,std=...,resize=...,crop=...",
        )
    return spec, manifest.preprocessing


def _num_classes(manifest: Manifest) -> int | None:
    if manifest.task is not Task.CLASSIFICATION:
        return None
    shape = manifest.outputs[0].shape
    return manifest.num_classes or (shape[1] if len(shape) > 1 else None)


def _spread(count: int, limit: int | None) -> list[int]:
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1, not {limit}")
    # Data sets are often sorted by class: the first images would be of one class only.
    used = count if limit is None else min(limit, count)
    return [index * count // used for index in range(used)]


def _batches(
    dataset: ImageDataset, indices: list[int], preprocessing: Preprocessing, batch_size: int
) -> Iterator[tuple[np.ndarray, list[int] | None]]:
    """Yield images of one size ``[N, C, H, W]`` and their labels."""
    if batch_size < 1:
        raise ConfigError(f"batch size must be at least 1, not {batch_size}")
    images: list[np.ndarray] = []
    labels: list[int] = []
    for index in indices:
        image, label = dataset[index]
        array = preprocess(image, preprocessing)
        if images and (len(images) == batch_size or array.shape != images[0].shape):
            yield np.stack(images), labels or None
            images, labels = [], []
        images.append(array)
        if label is not None:
            labels.append(label)
    yield np.stack(images), labels or None


def _hits(output: np.ndarray, labels: Sequence[int]) -> list[bool]:
    if output.ndim != 2:
        return []  # a map of classes has no single best class to compare with a label
    finite = np.isfinite(output).all(axis=1)
    # A single logit decides between class 0 and class 1 by its sign.
    best = output.argmax(axis=1) if output.shape[1] > 1 else (output[:, 0] > 0).astype(np.int64)
    return [bool(hit) for hit in finite & (best == np.asarray(labels))]
