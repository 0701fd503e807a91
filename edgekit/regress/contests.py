"""From two paths to what is compared: base and head of each target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.bench.lanes import FLOAT, Lane, plan_lanes
from edgekit.errors import ConfigError
from edgekit.regress.settings import Settings
from edgekit.runners.timing import TimingRequest


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two artifacts.

    Attributes:
        lane: the artifact, in the runtime of its target.
        reference: the float network that it was made from, if that runtime opens it.
    """

    lane: Lane
    reference: Lane | None


@dataclass(frozen=True, slots=True)
class Contest:
    """The two artifacts of one target."""

    target: str
    base: Side
    head: Side


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be compared.

    Attributes:
        contests: one for each target that both have.
        lost: targets that base has and head lacks.
        new: targets that head has and base lacks.
    """

    contests: tuple[Contest, ...]
    lost: tuple[str, ...]
    new: tuple[str, ...]


def plan_contests(
    base: Path,
    head: Path,
    targets: Sequence[str] | None,
    shapes: Mapping[str, tuple[int, ...]],
) -> Plan:
    """Pair the artifacts of two results, or two files.

    Args:
        base: a result directory, or a model file.
        head: the same.
        targets: runtimes to use, which both must have; those that base has if ``None``.
        shapes: sizes of inputs that the user states.

    Raises:
        ConfigError: they have no runtime in common, or lack one that is named.
        LoadError: a path does not exist, or a result directory is damaged.
        UnsupportedError: a result holds a target that no runtime executes.
    """
    sides = [_sides(path, targets, shapes) for path in (base, head)]
    common = [name for name in sides[0] if name in sides[1]]
    if not common:
        held = [", ".join(side) or "none" for side in sides]
        raise ConfigError(
            f"nothing to compare: '{base}' runs in {held[0]}, '{head}' in {held[1]}",
            "give two results with a target in common, or two files for the same runtime",
        )
    # Two files need not be of one kind: what only one of them opens in is no loss.
    whole = base.is_dir() and head.is_dir()
    return Plan(
        contests=tuple(Contest(name, sides[0][name], sides[1][name]) for name in common),
        lost=tuple(name for name in sides[0] if name not in sides[1]) if whole else (),
        new=tuple(name for name in sides[1] if name not in sides[0]) if whole else (),
    )


def _sides(
    path: Path, targets: Sequence[str] | None, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Side]:
    lanes = plan_lanes([path], targets, shapes)
    references = {lane.target: lane for lane in lanes if lane.precision == FLOAT}
    return {
        lane.target: Side(lane, references.get(lane.target))
        for lane in lanes
        if lane.precision != FLOAT
    }


def timing_request(lane: Lane, settings: Settings) -> TimingRequest:
    """Return what a process is to open and how."""
    return TimingRequest(
        target=lane.target,
        model=lane.model,
        shapes=lane.shapes,
        batch=settings.batch,
        threads=settings.threads,
        warmup_s=settings.warmup_seconds,
        seconds=0.0,
    )
