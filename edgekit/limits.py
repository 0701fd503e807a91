"""What will not work on a machine, said before anything is built there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.jetson import Jetson
from edgekit.requirements import within

_OLDEST_L4T = 36
_BUILD_BYTES = 1 << 30  # what building an engine of a small network takes beside the system
_DISK_BYTES = 1 << 29
_TENSOR_CORES = 75
_GIGABYTE = 1e9


@dataclass(frozen=True, slots=True)
class Limit:
    """Something that will not work, and what to do."""

    what: str
    instead: str

    def to_dict(self) -> dict[str, str]:
        """Return plain JSON values."""
        return {"what": self.what, "instead": self.instead}


@dataclass(frozen=True, slots=True)
class Facts:
    """What limits follow from.

    Attributes:
        jetson: the Jetson, if it is one.
        compute_capabilities: of the GPUs.
        gpu_problem: why there is none.
        works: the runtimes that work, with their versions.
        available_bytes: memory.
        free_bytes: room for temporary files.
        power: what :func:`edgekit.power.machine.power_mode` tells.
        pinned: what :func:`edgekit.power.machine.clocks_pinned` tells.
    """

    jetson: Jetson | None
    compute_capabilities: tuple[int, ...]
    gpu_problem: str | None
    works: Mapping[str, Mapping[str, str]]
    available_bytes: int | None
    free_bytes: int | None
    power: Mapping[str, Any] | None = None
    pinned: Mapping[str, bool | None] | None = None


def limits(facts: Facts) -> Iterator[Limit]:
    """Yield what will not work, the most important first."""
    if facts.jetson is not None:
        yield from _jetson_limits(facts, facts.jetson)
    if not facts.works:
        yield Limit("no artifact runs here", "install a runtime, as the advice says")
    for capability in facts.compute_capabilities:
        if capability < _TENSOR_CORES:
            yield Limit(
                f"TensorRT does not run INT8 on a GPU of compute capability {capability / 10:.1f}",
                "use the runtimes of the CPU",
            )
    if facts.free_bytes is not None and facts.free_bytes < _DISK_BYTES:
        yield Limit(
            f"larger networks do not fit: {facts.free_bytes / _GIGABYTE:.2f} GB of disk are free",
            "free space, or set workdir in devices.toml to a folder on another disk",
        )


def _jetson_limits(facts: Facts, jetson: Jetson) -> Iterator[Limit]:
    major = jetson.l4t_major
    if major is not None and major < _OLDEST_L4T:
        yield Limit(
            f"artifacts do not run on L4T {jetson.l4t} (JetPack {jetson.jetpack}): its Python and "
            "its TensorRT are too old",
            "install JetPack 6 or later",
        )
    if not facts.compute_capabilities:
        yield Limit(
            f"nothing runs on the GPU: {facts.gpu_problem}",
            "in a container, start it with --runtime nvidia",
        )
    yield from _engine_limits(facts, jetson)
    if jetson.dla_cores:
        yield Limit(
            f"the {jetson.dla_cores} DLA cores stay idle: artifacts state their scales in the "
            "graph, which DLA does not take before TensorRT 11.4.1",
            "run on the GPU, as edgekit does",
        )


def _engine_limits(facts: Facts, jetson: Jetson) -> Iterator[Limit]:
    packages = {name: v for versions in facts.works.values() for name, v in versions.items()}
    version = packages.get("tensorrt")
    if version is None:
        what = "no engine can be built or run: this Python has no tensorrt"
        if jetson.bindings is None:
            yield Limit(what, "sudo apt install python3-libnvinfer, a part of nvidia-jetpack")
        else:
            yield Limit(
                f"{what}, though the system has {jetson.bindings}",
                "make the virtual environment with --system-site-packages, with the system's "
                "python3",
            )
        return
    if not within(version, ">=10.3"):
        yield Limit(
            f"TensorRT {version} does not build edgekit's artifacts", "install JetPack 6 or later"
        )
    elif not within(version, ">=10.7") and jetson.l4t_major == _OLDEST_L4T:
        yield Limit(
            f"TensorRT {version} fails to build INT8 detectors with their NMS in the graph",
            "export such a network without NMS, or install TensorRT 10.7 for JetPack 6",
        )
    if facts.available_bytes is not None and facts.available_bytes < _BUILD_BYTES:
        yield Limit(
            f"an engine may not build: {facts.available_bytes / _GIGABYTE:.2f} GB of memory are "
            "available",
            "close the desktop (sudo systemctl isolate multi-user.target) or add swap",
        )


def settings_advice(facts: Facts) -> Iterator[str]:
    """Yield what keeps a Jetson slower than it can be."""
    power, pinned = facts.power, facts.pinned
    if facts.jetson is None:
        return
    if power is not None and not str(power.get("name") or "MAXN").startswith("MAXN"):
        yield (
            f"power mode {power['name']} caps clocks and cores: figures are of this mode only "
            "(modes: sudo nvpmodel -p --verbose; set one: sudo nvpmodel -m ID)"
        )
    if pinned is not None and False in pinned.values():
        yield "clocks move with the load: sudo jetson_clocks pins them for steady figures"
