"""Times an artifact in a fresh process: its cold start, and one block of inferences.

The child side is :mod:`edgekit.runners.timing_worker`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edgekit.runners.child import ask_worker
from edgekit.runners.early_stopping import EarlyStopping
from edgekit.runners.layer_times import LayerProfile
from edgekit.runners.run_options import RunOptions, Setup

_WORKER_MODULE = "edgekit.runners.timing_worker"
_GRACE_S = 600.0  # for loading, and for networks of which a single inference takes minutes


@dataclass(frozen=True, slots=True)
class TimingRequest:
    """What the child is to time.

    Attributes:
        target: key of the target in the registry.
        model: the file that the target's runner opens.
        shapes: sizes of inputs, by name; needed only where the file leaves axes open.
        batch: size of the first axis, where the file leaves it open.
        threads: threads of the runtime; its own choice if ``None``.
        warmup_s: seconds of inferences before the timed ones.
        seconds: seconds of timed inferences.
        options: what only some runners know.
    """

    target: str
    model: Path
    shapes: Mapping[str, tuple[int, ...]]
    batch: int
    threads: int | None
    warmup_s: float
    seconds: float
    options: RunOptions = field(default_factory=RunOptions)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "target": self.target,
            "model": str(self.model),
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "batch": self.batch,
            "threads": self.threads,
            "warmup_s": self.warmup_s,
            "seconds": self.seconds,
            "options": self.options.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TimingRequest:
        """Read what :meth:`to_dict` wrote."""
        shapes = {name: tuple(shape) for name, shape in data["shapes"].items()}
        options = RunOptions.from_dict(data["options"])
        changed = {"model": Path(data["model"]), "shapes": shapes, "options": options}
        return cls(**{**data, **changed})


@dataclass(frozen=True, slots=True)
class Block:
    """One block of inferences, one after the other, in a process of its own.

    Attributes:
        runs: timed inferences.
        min_ms, p50_ms, p90_ms, p99_ms, mean_ms, max_ms: their latencies.
        busy_cores: processor time of all threads, divided by the time of the block.
        process_ms: from the start of the process until edgekit's device part is imported.
        load_ms: importing the runtime and opening the model.
        first_ms: the first inference.
        peak_memory_bytes: largest resident size before the timed inferences; ``None`` where the
            system does not tell.
        inputs: sizes of what was fed, by name.
        versions: package to version of the runtime.
        setup: device, copies, CUDA graph and options, as :class:`Setup` tells them.
        device_ms: median time that the device worked on an inference, by its own events and
            without copies; ``None`` where there are none.
        begin_s, end_s: the timed inferences, on the system's monotonic clock.
    """

    runs: int
    min_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    max_ms: float
    busy_cores: float
    process_ms: float
    load_ms: float
    first_ms: float
    peak_memory_bytes: int | None
    inputs: Mapping[str, list[int]]
    versions: Mapping[str, str]
    setup: Mapping[str, Any] = field(default_factory=lambda: Setup().to_dict())
    device_ms: float | None = None
    begin_s: float = 0.0
    end_s: float = 0.0

    @property
    def cold_start_ms(self) -> float:
        """From nothing to the first result: the process, the runtime, the model, one inference."""
        return self.process_ms + self.load_ms + self.first_ms

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def time_block(request: TimingRequest) -> Block:
    """Time one block in a fresh process.

    Raises:
        EdgekitError: the artifact cannot be run here, or its process crashed.
    """
    return Block(**_ask(request, {"layers": 0, "stream": None}))


@dataclass(frozen=True, slots=True)
class Stream:
    """One uninterrupted run, as the single-stream scenario of MLPerf Inference wants it.

    Attributes:
        segments: the run in consecutive parts of about as many queries each; the cold start is
            that of their one process.
        duration_s: time of the whole run.
        early_stopping: the percentile that a run of any length may claim.
    """

    segments: tuple[Block, ...]
    duration_s: float
    early_stopping: EarlyStopping


def time_stream(request: TimingRequest, least_queries: int, segments: int) -> Stream:
    """Run one inference after the other, without a pause, in a fresh process.

    Args:
        request: ``seconds`` is the shortest duration.
        least_queries: inferences at least.
        segments: parts to cut the run into.

    Raises:
        EdgekitError: the artifact cannot be run here, or its process crashed.
    """
    wanted = {"least_queries": least_queries, "segments": segments}
    answer = _ask(request, {"layers": 0, "stream": wanted})
    return Stream(
        tuple(Block(**segment) for segment in answer["segments"]),
        float(answer["duration_s"]),
        EarlyStopping(**answer["early_stopping"]),
    )


def profile_layers(request: TimingRequest, runs: int) -> LayerProfile | None:
    """Return the runtime's own layer profile over ``runs`` inferences, from a fresh process.

    ``None`` where the runtime tells no times.

    Raises:
        EdgekitError: the artifact cannot be run here, or its process crashed.
    """
    profile = _ask(request, {"layers": runs, "stream": None})["profile"]
    return None if profile is None else LayerProfile.from_dict(profile)


def _ask(request: TimingRequest, what: Mapping[str, Any]) -> dict[str, Any]:
    absolute = replace(request, model=request.model.resolve())
    timeout_s = request.warmup_s + request.seconds + _GRACE_S
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        # The monotonic clock is the system's: the child reads on it how long its start took.
        asked = {**absolute.to_dict(), **what, "started_s": time.monotonic()}
        answer = dict(ask_worker(_WORKER_MODULE, asked, Path(folder), timeout_s))
    del answer["error"]
    return answer
