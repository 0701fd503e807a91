"""Verification: run each artifact in its own runtime and compare it with its simulation."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgekit.capture import CapturedModel
from edgekit.errors import EdgekitError, MissingDependencyError
from edgekit.fidelity import agreement_percent, sqnr_db
from edgekit.lowering import LoweredModel
from edgekit.runners.child import WorkerRequest, WorkerResult, run_in_child
from edgekit.samples import SampleAxis, batch_of, sample_axes, stack_inputs, together
from edgekit.signals import patterns, random_batches
from edgekit.simulate import simulate
from edgekit.sites import Role, weighted_layers
from edgekit.types import Artifact, ExecutedLayer, Task

MIN_MATCH = 99.0
"""Least agreement with the simulation, percent: top-1 match of classifiers, cosine of embeddings.
Rankings may swap near ties and images have no classes: there the SQNR alone decides."""
MIN_SQNR_DB = 20.0
"""Least SQNR against the simulation. Both round the same values; float sums in another order
move a code by one here and there, and deep networks amplify that to 25 to 35 dB."""
DECIDED_MARGIN = 0.5
"""A class is compared where the simulation's two best logits differ by at least this multiple of
the logits' root mean square: 3.5 standard deviations of the error of an artifact at the SQNR floor.
Below it the last bit of a float sum may decide, and a flip says nothing about the artifact."""
CANDIDATES = 64
KEPT = 32
_SIMULATED = "its ONNX file was run in ONNX Runtime with Q/DQ as arithmetic"
_TIMEOUT_S = 600.0
_BATCH = 32


@dataclass(frozen=True)
class VerificationInputs:
    """Synthetic inputs with the float network's outputs.

    ``feeds`` holds arrays ``[samples, *input shape]`` by input name, ``reference`` what each
    output is for each sample, ``axes`` where the outputs hold their samples.
    """

    feeds: Mapping[str, np.ndarray]
    reference: tuple[np.ndarray, ...]
    axes: tuple[SampleAxis, ...]


@dataclass(frozen=True)
class TargetVerification:
    """What one artifact did when it was run.

    Attributes:
        target: the target's name.
        executed: it ran in its own runtime; ``False`` for a simulation of the file.
        passed: it equals its simulation within the stated limits.
        reason: why it is not executed, or why it failed.
        match: agreement with the simulation, percent; for classifiers on decided samples only,
            ``None`` if there is none.
        compared: number of samples behind ``match``; of positions, where each has a class.
        simulation_sqnr_db: SQNR against the simulation.
        agreement: agreement with the float network, percent.
        sqnr_db: SQNR against the float network.
        layers: executed precision of every weighted layer, as the runtime tells it.
        float_layers: weighted layers that did not run on integers, with the reason.
        stored_layers: those of them whose weights are integers in the file, as planned.
        integer_layers: number that did; none where no runtime executes the artifact.
        weighted_layers: number in all.
        versions: version of the runtime.
    """

    target: str
    executed: bool
    passed: bool
    reason: str | None = None
    match: float | None = None
    compared: int = 0
    simulation_sqnr_db: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    layers: tuple[ExecutedLayer, ...] = ()
    float_layers: Mapping[str, str] = field(default_factory=dict)
    stored_layers: Mapping[str, str] = field(default_factory=dict)
    integer_layers: int = 0
    weighted_layers: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; infinite SQNR (identical outputs) becomes ``null``."""
        return {
            "executed": self.executed,
            "passed": self.passed,
            "reason": self.reason,
            "match": self.match,
            "compared": self.compared,
            "simulation_sqnr_db": _finite(self.simulation_sqnr_db),
            "agreement": self.agreement,
            "sqnr_db": _finite(self.sqnr_db),
            "integer_layers": self.integer_layers,
            "weighted_layers": self.weighted_layers,
            "float_layers": dict(self.float_layers),
            "stored_layers": dict(self.stored_layers),
            "layers": [
                {"name": layer.name, "op": layer.op, "precision": layer.precision}
                for layer in self.layers
            ],
            "versions": dict(self.versions),
        }


def verification_inputs(
    model: CapturedModel, seed: int, candidates: int = CANDIDATES
) -> VerificationInputs:
    """Draw two-tone patterns and keep, for classifiers, those the float network is surest about.

    Random images lie near decision boundaries, where the last bit of a sum decides the class;
    a comparison of classes means something only away from them.
    """
    generator = torch.Generator().manual_seed(seed + 1)  # not the calibration's inputs
    axes = _sample_axes(model)
    size = together(model, axes, min(_BATCH, candidates))
    batches = list(random_batches(model, candidates, size, generator, draw=patterns))
    feeds = stack_inputs(model, batches)
    outputs = _by_sample(axes, [model(*batch) for batch in batches], size)
    keep = np.arange(len(outputs[0]))[:KEPT]
    if model.task is Task.CLASSIFICATION and outputs[0].ndim == 2 and outputs[0].shape[1] > 1:
        best = np.sort(outputs[0], axis=1)
        keep = np.sort(np.argsort(best[:, -2] - best[:, -1], kind="stable")[:KEPT])
    return VerificationInputs(
        {name: feed[keep] for name, feed in feeds.items()},
        tuple(output[keep] for output in outputs),
        axes,
    )


def _sample_axes(model: CapturedModel) -> tuple[SampleAxis, ...]:
    """Return where outputs hold their samples; with a fixed batch of one, on axis 0 as well."""
    axes = sample_axes(model)
    if model.batch or any(spec.shape[0] != 1 for spec in model.inputs):
        return axes
    return tuple(replace(a, axis=0) if a.shape and a.shape[0] == 1 else a for a in axes)


def _by_sample(
    axes: Sequence[SampleAxis], batches: Sequence[tuple[Tensor, ...]], size: int
) -> tuple[np.ndarray, ...]:
    """Return each output as ``[samples, ...]`` from what batches of ``size`` computed."""
    return tuple(
        np.concatenate([axis.split(value.numpy(), size) for value in column])
        for axis, column in zip(axes, zip(*batches, strict=True), strict=True)
    )


def verify(
    artifacts: Sequence[Artifact],
    lowered: Mapping[str, LoweredModel],
    directory: Path,
    *,
    executed: Mapping[str, bool],
    why_simulated: Mapping[str, str] | None = None,
    inputs: VerificationInputs,
    threads: int,
    on_target: Callable[[str], None] = lambda _target: None,
) -> list[TargetVerification]:
    """Run every artifact in a child process and compare it with its own simulation.

    Args:
        artifacts: what the exporters wrote.
        lowered: the decisions behind each target's artifact.
        directory: what the artifacts' paths are relative to.
        executed: whether each target runs here, or its ONNX file is simulated.
        why_simulated: the reason of each target that no runtime executes: its layers are none on
            integers, and not merely unproven.
        inputs: what to feed.
        threads: threads of each runtime.
        on_target: called with the name of each target when it begins.
    """
    results = []
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch, ThreadPoolExecutor(1) as pool:
        feeds = Path(scratch) / "inputs.npz"
        np.savez(feeds, **dict(inputs.feeds))  # type: ignore[arg-type]
        runs = []
        for artifact in artifacts:
            simulated = not executed[artifact.target]
            request = WorkerRequest(
                artifact.target,
                directory / artifact.model,
                feeds,
                threads=threads,
                simulate=simulated,
                stacked=True,
            )
            runs.append(pool.submit(run_in_child, request, _TIMEOUT_S))
        try:
            for artifact, run in zip(artifacts, runs, strict=True):
                on_target(artifact.target)
                expected = _simulated(lowered[artifact.target], inputs)
                results.append(
                    _compare(
                        artifact,
                        lowered[artifact.target],
                        executed[artifact.target],
                        (why_simulated or {}).get(artifact.target),
                        expected,
                        inputs,
                        run.result(),
                    )
                )
        except BaseException:  # interrupted: let no queued target begin
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results


def _simulated(lowered: LoweredModel, inputs: VerificationInputs) -> tuple[np.ndarray, ...]:
    size = together(lowered.sited.model, inputs.axes, _BATCH)
    samples = len(inputs.reference[0])
    sizes = {start: min(size, samples - start) for start in range(0, samples, size)}
    parts = [
        _by_sample(inputs.axes, [simulate(lowered, *batch_of(inputs.feeds, start, count))], count)
        for start, count in sizes.items()
    ]
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def _compare(
    artifact: Artifact,
    lowered: LoweredModel,
    executed: bool,
    why_simulated: str | None,
    expected: tuple[np.ndarray, ...],
    inputs: VerificationInputs,
    run: WorkerResult,
) -> TargetVerification:
    target, model = artifact.target, lowered.sited.model
    if run.failure is not None:
        return _not_run(target, executed, run.failure)
    got, problem = _returned(model, expected, inputs.axes, run.outputs)
    if problem is not None:
        return TargetVerification(target, executed, passed=False, reason=problem)
    match, compared = _match(model.task, expected[0], got[0])
    fidelity = min(sqnr_db(e, g) for e, g in zip(expected, got, strict=True))
    judged = model.task in (Task.CLASSIFICATION, Task.EMBEDDING) and match is not None
    passed = fidelity >= MIN_SQNR_DB and (not judged or (match or 0.0) >= MIN_MATCH)
    reason = None if executed else why_simulated or _SIMULATED
    if not passed:
        reason = (
            f"differs from its simulation: agreement {_percent(match)} (at least {MIN_MATCH:g} %), "
            f"SQNR {fidelity:.1f} dB (at least {MIN_SQNR_DB:g})"
        )
    weighted = weighted_layers(lowered.sited, lowered.placement.float_layers)
    stored = lowered.placement.stored
    float_layers = _float_layers(lowered, weighted, run.executed if executed else None)
    return TargetVerification(
        target=target,
        executed=executed,
        passed=passed,
        reason=reason,
        match=match,
        compared=compared,
        simulation_sqnr_db=fidelity,
        agreement=agreement_percent(model.task, inputs.reference[0], got[0]),
        sqnr_db=min(sqnr_db(r, g) for r, g in zip(inputs.reference, got, strict=True)),
        layers=run.executed,
        float_layers=float_layers,
        stored_layers={n: stored[node].precision for n, node in weighted.items() if node in stored},
        integer_layers=0 if why_simulated is not None else len(weighted) - len(float_layers),
        weighted_layers=len(weighted),
        versions=run.versions,
    )


def _returned(
    model: CapturedModel,
    expected: Sequence[np.ndarray],
    axes: Sequence[SampleAxis],
    outputs: Mapping[str, np.ndarray],
) -> tuple[tuple[np.ndarray, ...], str | None]:
    """Return the artifact's outputs in the network's order, or what is wrong with them."""
    found = []
    for spec, value, axis in zip(model.outputs, expected, axes, strict=True):
        if spec.name not in outputs:
            names = ", ".join(sorted(outputs)) or "none"
            return (), f"the artifact has no output '{spec.name}'; it has {names}"
        got = outputs[spec.name]
        if got.ndim == len(axis.shape) + 1:
            got = axis.squeeze(got)
        if got.shape != value.shape:
            one, other = (list(array.shape[1:]) for array in (value, got))
            return (), f"output '{spec.name}' is {other} for each sample in place of {one}"
        found.append(got)
    return tuple(found), None


def _match(task: Task, expected: np.ndarray, got: np.ndarray) -> tuple[float | None, int]:
    """Return the agreement with the simulation, percent, and of how many samples or positions."""
    if task is not Task.CLASSIFICATION:
        return agreement_percent(task, expected, got), len(expected)
    expected, got = _logits(expected), _logits(got)
    decided = _decided(expected)
    if not decided.any():
        return None, 0
    return agreement_percent(task, expected[decided], got[decided]), int(decided.sum())


def _logits(output: np.ndarray) -> np.ndarray:
    """Return the logits ``[N, K]`` of every position of ``[N, K, ...]``; a lone logit has K = 1."""
    by_class = output[:, None] if output.ndim == 1 else np.moveaxis(output, 1, -1)
    return by_class.reshape(-1, by_class.shape[-1])


def _decided(logits: np.ndarray) -> np.ndarray:
    """Return a mask ``[N]`` of the rows whose class the simulation is sure of."""
    size = DECIDED_MARGIN * np.sqrt((logits.astype(np.float64) ** 2).mean())
    if logits.shape[1] == 1:  # decided by its sign; one error counts in place of two
        lone: np.ndarray = np.abs(logits[:, 0]) >= size / np.sqrt(2)
        return lone
    best = np.partition(logits, -2, axis=1)
    decided: np.ndarray = best[:, -1] - best[:, -2] >= size
    return decided


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f} %"


def _not_run(target: str, executed: bool, failure: EdgekitError) -> TargetVerification:
    """A simulation without a simulator is no failure of the artifact; all else is."""
    excused = not executed and isinstance(failure, MissingDependencyError)
    text = f"not checked: {failure.message}" if excused else failure.message
    return TargetVerification(target, executed=False, passed=excused, reason=text)


def _float_layers(
    lowered: LoweredModel,
    weighted: Mapping[str, str],
    layers: Sequence[ExecutedLayer] | None,
) -> dict[str, str]:
    """Return weighted layers not on integers; with ``layers``, as the runtime reports them."""
    planned = lowered.placement.float_layers
    reasons = {name: planned[node] for name, node in weighted.items() if node in planned}
    if layers is None:
        return reasons
    outputs = {spec.name for spec in lowered.sited.model.outputs}
    for name, node in weighted.items():
        # OpenVINO calls the operator that produces a network output after that output.
        names = {name} | (_produces_output(lowered, node) & outputs)
        ran = [layer.precision for layer in layers if layer.name in names] or ["unknown"]
        stored = lowered.placement.stored.get(node)
        if stored is not None and stored.packed and not any(map(stored.keeps, ran)):
            planned_as = stored.precision
        elif name not in reasons and "int8" not in ran:
            planned_as = "INT8"
        else:
            continue
        reasons[name] = f"planned for {planned_as}, but the runtime ran it in {ran[0]}"
    return reasons


def _produces_output(lowered: LoweredModel, node: str) -> set[str]:
    model = lowered.sited.model
    returned = [site.tensor for site in lowered.sited.sites if site.role is Role.OUTPUT]
    names = [spec.name for spec in model.outputs if spec.dtype.startswith("float")]
    return {name for name, tensor in zip(names, returned, strict=False) if tensor == node}


def require_agreement(results: Sequence[TargetVerification], least: float | None) -> list[str]:
    """Return a message for each target whose agreement with float is below ``least`` percent."""
    if least is None:
        return []
    return [
        f"{result.target}: agreement with the float network is {_percent(result.agreement)}, "
        f"and at least {least:g} % was asked for"
        for result in results
        if result.passed and (result.agreement is None or result.agreement < least)
    ]


def _finite(value: float | None) -> float | None:
    return value if value is None or np.isfinite(value) else None
