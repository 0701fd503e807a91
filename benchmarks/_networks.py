"""The networks of the compatibility suite, each through the installed command ``edgekit``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks._cases import ROOT
from benchmarks._measure import edgekit_command
from benchmarks._process import StepError, run_measured

TESTS = ROOT / "tests"


@dataclass(frozen=True, slots=True)
class TargetResult:
    """What became of one network on one target.

    ``how``: ``run``, ``simulated``, ``unchecked`` or ``failed``; ``reason`` belongs to the last
    two. ``engines`` counts prebuilt TensorRT engines.
    """

    how: str
    reason: str | None
    integer_layers: int
    layers: int
    in_float: dict[str, str]
    agreement: float | None
    sqnr_db: float | None
    engines: int

    @property
    def verified(self) -> bool:
        """Whether it equals its simulation, by its runtime or as a simulated file."""
        return self.how in ("run", "simulated")

    @property
    def mostly_float(self) -> bool:
        """Whether half of its weighted layers, or more, do not run on integers."""
        return self.verified and 2 * self.integer_layers <= self.layers

    @property
    def silent(self) -> bool:
        """Whether a layer is in float without a reason."""
        counted = self.integer_layers + len(self.in_float) == self.layers
        return self.verified and not (counted and all(self.in_float.values()))


@dataclass(frozen=True, slots=True)
class NetworkResult:
    """One network: what it is, and its targets; ``failure`` if there is no result at all."""

    name: str
    family: str
    inputs: tuple[str, ...]
    task: str
    seconds: float
    failure: str | None
    targets: dict[str, TargetResult]

    def verified(self, targets: Sequence[str]) -> bool:
        """Whether it is verified on every one of the targets."""
        return all(name in self.targets and self.targets[name].verified for name in targets)

    def reasons(self, targets: Sequence[str]) -> dict[str, str | None]:
        """Return, for each target on which it is not verified, why."""
        if self.failure is not None:
            return dict.fromkeys(targets, self.failure)
        found = {name: self.targets.get(name) for name in targets}
        return {
            name: "its runtime is not installed" if target is None else target.reason
            for name, target in found.items()
            if target is None or not target.verified
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def network_cases() -> tuple[Any, ...]:
    """Return the cases; the definitions are those of the tests (``tests/architectures``)."""
    sys.path.insert(0, str(TESTS))
    try:
        from architectures import CASES
    finally:
        sys.path.remove(str(TESTS))
    return CASES


def quantize_networks(
    cases: Sequence[Any], folder: Path, say: Callable[[str], None]
) -> list[NetworkResult]:
    """Quantize every network for all targets; one that fails does not stop the others."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), *([before] if before else [])])
    try:
        results = []
        for case in cases:
            say(case.name)
            results.append(_quantize(case, folder))
        return results
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _quantize(case: Any, folder: Path) -> NetworkResult:
    weights = case.write_weights(folder)
    out = weights.with_suffix("")
    command = [edgekit_command(), "quantize", str(weights), "--out", str(out), "--json"]
    command += ["--arch", case.arch, "--task", case.task.value]
    for text in case.inputs:
        command += ["--input", text]
    seconds, failure, targets = 0.0, None, {}
    try:
        seconds = run_measured(command, allowed=(0, 1)).seconds
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
        targets = {name: _target(entry) for name, entry in report["targets"].items()}
    except (StepError, OSError) as error:
        failure = str(error).replace(str(folder), folder.name)
    return NetworkResult(
        case.name, case.family, case.inputs, case.task.value, seconds, failure, targets
    )


def _target(entry: dict[str, Any]) -> TargetResult:
    engines = [path for path in entry.get("files", ()) if path.endswith(".plan")]
    how, reason = "failed", entry["failure"]
    if entry["status"] == "ok":
        checked = entry["agreement"] is not None
        how = "run" if entry["executed"] else "simulated" if checked else "unchecked"
        reason = entry["reason"]
    return TargetResult(
        how,
        reason,
        entry.get("integer_layers", 0),
        entry.get("weighted_layers", 0),
        entry.get("float_layers", {}),
        entry.get("agreement"),
        entry.get("sqnr_db"),
        len(engines),
    )
