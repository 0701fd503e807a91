"""What must not get worse beside the latency: INT8 layers, size, error of the outputs.

These are no estimates. Both artifacts run once in a process of their own, on the same inputs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.errors import ConfigError, EdgekitError
from edgekit.fidelity import sqnr_db
from edgekit.regress.contests import Contest, Side, timing_request
from edgekit.regress.settings import Settings
from edgekit.runners.drawn import DrawnRun, run_on_drawn_inputs
from edgekit.types import ExecutedLayer

_RUNS = 8
_INTEGER = "int8"
_SLACK_DB = 1.0
"""Two equally good roundings of one network differ by some tenths of a decibel on few inputs."""
_CEILING_DB = 60.0  # a thousandth of the signal: below it errors are those of float sums
_SIZE_SLACK_BYTES = 4096  # names and versions inside a file
_SHOWN = 4


@dataclass(frozen=True, slots=True)
class Check:
    """One property of head, compared with that of base.

    Attributes:
        name: ``"runs"``, ``"int8_layers"``, ``"size"`` or ``"output_error"``.
        passed: whether it is not worse.
        base, head: the figures; ``None`` where there is none.
        text: what was compared, for people.
    """

    name: str
    passed: bool
    base: float | None
    head: float | None
    text: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "name": self.name,
            "passed": self.passed,
            "base": self.base,
            "head": self.head,
            "text": self.text,
        }


def check(contest: Contest, settings: Settings) -> tuple[Check, ...]:
    """Compare what both artifacts are and compute.

    Args:
        contest: the two artifacts.
        settings: the limits.

    Raises:
        ConfigError: base and head do not take the same inputs.
        EdgekitError: base cannot be run here, or its runtime is missing; that head cannot is a
            failed check.
    """
    base = _run(contest.base, settings)
    size = _size(contest, settings)
    try:
        head = _run(contest.head, settings)
    except ConfigError:
        raise
    except EdgekitError as error:
        return (Check("runs", False, None, None, f"head does not run: {error.message}"), size)
    if base.artifact.inputs != head.artifact.inputs:
        raise ConfigError(
            f"{contest.target}: base takes {dict(base.artifact.inputs)}, "
            f"head {dict(head.artifact.inputs)}",
            "artifacts of the same inputs can be compared; --input states sizes that are open",
        )
    layers = _integer_layers(base.artifact.executed, head.artifact.executed)
    return (*layers, size, _output_error(base, head, settings))


@dataclass(frozen=True, slots=True)
class _SideRun:
    artifact: DrawnRun
    reference: DrawnRun | None


def _run(side: Side, settings: Settings) -> _SideRun:
    lanes = (side.lane, side.reference)
    artifact, reference = (
        None if lane is None else run_on_drawn_inputs(timing_request(lane, settings), _RUNS)
        for lane in lanes
    )
    assert artifact is not None
    return _SideRun(artifact, reference)


def _integer_layers(
    base: tuple[ExecutedLayer, ...], head: tuple[ExecutedLayer, ...]
) -> Iterator[Check]:
    if not base or not head:
        return  # the runtime tells no layers
    counts = [sum(layer.precision == _INTEGER for layer in side) for side in (base, head)]
    totals = [len(side) for side in (base, head)]
    text = f"{counts[1]} of {totals[1]} layers in INT8, base: {counts[0]} of {totals[0]}"
    integer = Counter(layer.name for layer in base if layer.precision == _INTEGER)
    lost = [x.name for x in head if x.precision != _INTEGER and x.name in integer]
    if counts[1] < counts[0] and lost:
        more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
        text += f"; no longer: {', '.join(lost[:_SHOWN])}{more}"
    yield Check("int8_layers", counts[1] >= counts[0], counts[0], counts[1], text)


def _size(contest: Contest, settings: Settings) -> Check:
    base, head = (side.lane.size_bytes for side in (contest.base, contest.head))
    limit = base * (1 + settings.size_tolerance) + _SIZE_SLACK_BYTES
    return Check("size", head <= limit, base, head, f"{head} bytes, base: {base}")


def _output_error(base: _SideRun, head: _SideRun, settings: Settings) -> Check:
    if base.reference is None or head.reference is None:
        found = _agreement_db(base.artifact.outputs, head.artifact.outputs)
        text = f"{_decibel(found)} SQNR against base, at least {settings.min_sqnr_db:g} dB"
        return Check("output_error", found >= settings.min_sqnr_db, None, _plain(found), text)
    before, after = (
        _agreement_db(side.reference.outputs, side.artifact.outputs)
        for side in (base, head)
        if side.reference is not None
    )
    text = f"{_decibel(after)} SQNR against its float network, base: {_decibel(before)}"
    passed = after >= min(before, _CEILING_DB) - _SLACK_DB
    return Check("output_error", passed, _plain(before), _plain(after), text)


def _agreement_db(reference: Mapping[str, np.ndarray], value: Mapping[str, np.ndarray]) -> float:
    """Return the SQNR of the worst output; minus infinity where the outputs are others."""
    shapes = [{name: array.shape for name, array in side.items()} for side in (reference, value)]
    if shapes[0] != shapes[1]:
        return -math.inf
    return min(sqnr_db(array, value[name]) for name, array in reference.items())


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no infinity


def _decibel(value: float) -> str:
    if math.isfinite(value):
        return f"{value:.1f} dB"
    return "infinite" if value > 0 else "no comparable"
