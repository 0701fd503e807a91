"""What a run tells of each file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.types import Task

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Guess:
    """One class that a network, or the nearest prototype, proposes.

    Attributes:
        index: of the class.
        name: of the class, where names are known.
        score: the network's own output, or how well a prototype fits.
        probability: from 0 to 1; ``None`` for prototypes, whose scores are none.
    """

    index: int
    name: str | None
    score: float
    probability: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "index": self.index,
            "name": self.name,
            "score": self.score,
            "probability": self.probability,
        }


@dataclass(frozen=True, slots=True)
class FileResult:
    """What came of one file.

    Attributes:
        file: as it was given.
        size: height and width of a picture, ``None`` for arrays.
        seconds: that the network took.
        tiles: runs that one picture took.
        outputs: kind of output to the file that was written.
        guesses: classes, best first.
        notes: what must be known about it.
    """

    file: Path
    size: tuple[int, int] | None
    seconds: float
    tiles: int = 1
    outputs: Mapping[str, Path] = field(default_factory=dict)
    guesses: Sequence[Guess] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "file": str(self.file),
            "size": None if self.size is None else list(self.size),
            "seconds": self.seconds,
            "tiles": self.tiles,
            "outputs": {kind: str(path) for kind, path in self.outputs.items()},
            "classes": [guess.to_dict() for guess in self.guesses],
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a run did.

    Attributes:
        task: of the network.
        target: that ran.
        executed: its own runtime ran it; ``False`` for a simulation by ONNX Runtime.
        reason: why it was simulated.
        files: what came of each file, in order.
        outputs: files that belong to the run as a whole.
        metric: by which prototypes were compared.
        support: number of support images of each class, where there are prototypes.
    """

    task: Task
    target: str
    executed: bool
    reason: str | None
    files: tuple[FileResult, ...]
    outputs: Mapping[str, Path] = field(default_factory=dict)
    metric: str | None = None
    support: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "task": self.task.value,
            "target": self.target,
            "executed": self.executed,
            "reason": self.reason,
            "metric": self.metric,
            "support": dict(self.support),
            "outputs": {kind: str(path) for kind, path in self.outputs.items()},
            "files": [result.to_dict() for result in self.files],
        }
