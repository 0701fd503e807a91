"""Verification at a second size, for networks that take any: an export may have fixed the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from edgekit.capture import SIZE_ERRORS, CapturedModel, other_size
from edgekit.lowering import LoweredModel
from edgekit.registry import BUILDERS
from edgekit.types import Artifact
from edgekit.verify import TargetVerification, verification_inputs, verify

SAMPLES = 2
"""A size that was written into a file shows in every sample."""


def verify_other_size(
    results: Sequence[TargetVerification],
    model: CapturedModel,
    artifacts: Sequence[Artifact],
    lowered: Mapping[str, LoweredModel],
    directory: Path,
    *,
    executed: Mapping[str, bool],
    why_simulated: Mapping[str, str],
    seed: int,
    threads: int,
) -> list[TargetVerification]:
    """Run the artifacts that passed once more, at another size, where the network takes any.

    Engines are built for the stated size: of such targets the ONNX file is simulated.

    Args:
        results: at the stated size.
        model: the network.
        artifacts: what the exporters wrote.
        lowered: the decisions behind each target's artifact.
        directory: what the artifacts' paths are relative to.
        executed: whether each target runs here.
        why_simulated: the reason of each target that no runtime executes.
        seed: of the inputs.
        threads: threads of each runtime.

    Returns:
        The results, failed where the second size fails, with the smaller SQNR against the
        simulation. Nothing changes where the network itself does not take that size, which a note
        of the capture says.
    """
    sized = replace(model, inputs=tuple(other_size(spec) for spec in model.inputs))
    checked = {result.target for result in results if result.passed}
    if sized.inputs == model.inputs or not checked:
        return list(results)
    try:
        inputs = verification_inputs(sized, seed, SAMPLES)
    except SIZE_ERRORS:
        return list(results)
    again = verify(
        [artifact for artifact in artifacts if artifact.target in checked],
        lowered,
        directory,
        executed={name: ran and name not in BUILDERS for name, ran in executed.items()},
        why_simulated=why_simulated,
        inputs=inputs,
        threads=threads,
    )
    size = ", ".join("x".join(map(str, spec.shape)) for spec in sized.inputs)
    seen = {result.target: result for result in again}
    return [
        _worse(result, seen[result.target], size) if result.target in seen else result
        for result in results
    ]


def _worse(first: TargetVerification, second: TargetVerification, size: str) -> TargetVerification:
    figures = [f for f in (first.simulation_sqnr_db, second.simulation_sqnr_db) if f is not None]
    found = replace(first, simulation_sqnr_db=min(figures, default=None))
    if second.passed:
        return found
    return replace(found, passed=False, reason=f"at the size {size}: {second.reason}")
