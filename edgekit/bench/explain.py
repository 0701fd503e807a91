"""Why INT8 is not faster than float, from the runtime's own layer profile."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.runners.layer_times import LayerKind, LayerProfile, LayerTime

_NOTABLE = 0.05  # a cause that takes less of the time explains nothing
_SHOWN = 4
_BALANCE = 10.0
"""Multiply-adds for each byte moved, below which a layer waits for memory: a core sums about 100
INT8 products in a cycle, and gets about 10 bytes in a cycle from the caches beyond its first."""
_X86 = ("x86_64", "AMD64", "i686")
_WIDE = ("avx512", "vnni", "amx")  # parts of the names of kernels
_DOT_PRODUCT = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"}


@dataclass(frozen=True, slots=True)
class Reason:
    """One cause. ``share`` is the part of the INT8 inference it takes, if it takes a part."""

    code: str
    text: str
    share: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"code": self.code, "text": self.text, "share": self.share}


@dataclass(frozen=True, slots=True)
class Profiled:
    """A lane's layer profile, and the time of an inference that belongs to no layer."""

    layers: Sequence[LayerTime]
    outside_ms: float

    @classmethod
    def of(cls, profile: LayerProfile | None, latency_ms: float) -> Profiled:
        """Combine a profile with the median latency that was measured without one.

        Recording costs time outside of layers, and a busy machine interrupts whole inferences:
        the smaller of the two figures is nearer to the truth.
        """
        if profile is None:
            return cls((), 0.0)
        inside_ms = sum(layer.microseconds for layer in profile.layers) / 1e3
        outside_ms = min(profile.outside_microseconds / 1e3, max(latency_ms - inside_ms, 0.0))
        return cls(profile.layers, outside_ms)

    @property
    def total_ms(self) -> float:
        """Time of an inference."""
        return self.milliseconds(self.layers) + self.outside_ms

    def kind(self, *kinds: LayerKind) -> list[LayerTime]:
        """Return the layers of some kinds."""
        return [layer for layer in self.layers if layer.kind in kinds]

    @staticmethod
    def milliseconds(layers: Iterable[LayerTime]) -> float:
        """Return the time of some layers."""
        return sum(layer.microseconds for layer in layers) / 1e3

    def share(self, layers: Iterable[LayerTime]) -> float:
        """Return the time of some layers as a part of the inference."""
        return self.milliseconds(layers) / self.total_ms if self.layers else 0.0

    def groups(self) -> dict[str, dict[str, Any]]:
        """Return count and time of each kind of layer, and the time outside of all layers."""
        found: dict[str, dict[str, Any]] = {}
        for kind in LayerKind:
            layers = self.kind(kind)
            found[kind.value] = {
                "count": len(layers),
                "ms": round(self.milliseconds(layers), 4),
            }
        found["outside"] = {"count": None, "ms": round(self.outside_ms, 4)}
        return found


def explain(
    integer: Profiled, reference: Profiled, name: str, flags: Sequence[str], machine: str
) -> tuple[Reason, ...]:
    """Name the causes, the largest first.

    Args:
        integer: the INT8 lane.
        reference: the lane that it is compared with, in the same runtime.
        name: what to call that lane.
        flags: instruction sets of the CPU, as ``/proc/cpuinfo`` calls them.
        machine: architecture, as ``platform.machine()`` calls it.
    """
    if not integer.layers:
        return (Reason("no_profile", "the runtime gives no layer times"),)
    measured = [
        _float_layers(integer),
        _conversions(integer),
        _memory_bound(integer),
        _other_operators(integer),
        _outside(integer),
    ]
    found = sorted(
        (reason for reason in measured if reason is not None),
        key=lambda reason: reason.share or 0.0,
        reverse=True,
    )
    dot_product = _no_dot_product(integer, flags, machine)
    if dot_product is not None:
        found.insert(0, dot_product)
    return (*found, _layers_compared(integer, reference, name))


def _float_layers(lane: Profiled) -> Reason | None:
    layers = lane.kind(LayerKind.FLOAT)
    weighted = len(layers) + len(lane.kind(LayerKind.INTEGER))
    share = lane.share(layers)
    if not layers or (share < _NOTABLE and len(layers) < weighted):
        return None
    text = (
        f"{len(layers)} of {weighted} layers with weights run in float and take "
        f"{_percent(share)} of the time: {_names(layers)}"
    )
    return Reason("float_layers", text, share)


def _conversions(lane: Profiled) -> Reason | None:
    layers = lane.kind(LayerKind.CONVERSION)
    share = lane.share(layers)
    if share < _NOTABLE:
        return None
    counts: dict[str, int] = {}
    for layer in layers:
        counts[layer.op] = counts.get(layer.op, 0) + 1
    kinds = ", ".join(f"{count} {op}" for op, count in counts.items())
    text = (
        f"{len(layers)} conversions to and from integers and between memory layouts take "
        f"{_percent(share)} of the time: {kinds}"
    )
    return Reason("conversions", text, share)


def _memory_bound(lane: Profiled) -> Reason | None:
    layers = [
        layer
        for layer in lane.kind(LayerKind.INTEGER)
        if layer.multiply_adds is not None
        and layer.moved_bytes
        and layer.multiply_adds < _BALANCE * layer.moved_bytes
    ]
    share = lane.share(layers)
    if share < _NOTABLE:
        return None
    text = (
        f"{len(layers)} INT8 layers move more than they compute (fewer than {_BALANCE:g} "
        f"multiply-adds for each byte), where faster arithmetic helps little, and take "
        f"{_percent(share)} of the time: {_names(layers)}"
    )
    return Reason("memory_bound", text, share)


def _other_operators(lane: Profiled) -> Reason | None:
    layers = lane.kind(LayerKind.OTHER)
    share = lane.share(layers)
    if share < _NOTABLE:
        return None
    times: dict[str, float] = {}
    for layer in layers:
        times[layer.op] = times.get(layer.op, 0.0) + layer.microseconds
    ops = sorted(times, key=lambda op: times[op], reverse=True)[:_SHOWN]
    text = (
        f"{len(layers)} operators without weights, which INT8 speeds up little or not at all, "
        f"take {_percent(share)} of the time: {', '.join(ops)}"
    )
    return Reason("other_operators", text, share)


def _outside(lane: Profiled) -> Reason | None:
    share = lane.outside_ms / lane.total_ms
    if share < 2 * _NOTABLE:  # every runtime has some
        return None
    text = (
        f"{_percent(share)} of the time is spent outside of layers (the call itself, scheduling, "
        "waking threads): the network is small for this runtime"
    )
    return Reason("outside_layers", text, share)


def _no_dot_product(lane: Profiled, flags: Sequence[str], machine: str) -> Reason | None:
    kernels = sorted({layer.kernel for layer in lane.kind(LayerKind.INTEGER) if layer.kernel})
    if not lane.kind(LayerKind.INTEGER):
        return None
    narrow = [kernel for kernel in kernels if "avx2" in kernel]
    wide = [kernel for kernel in kernels if any(name in kernel for name in _WIDE)]
    if not _DOT_PRODUCT & set(flags):
        name = "VNNI" if machine in _X86 else "8-bit dot product"
        text = (
            f"this CPU has no {name} instructions: integer kernels multiply and add in several "
            "steps, so INT8 saves memory traffic more than arithmetic"
        )
        return Reason("no_vnni", text)
    if narrow and not wide and "avx_vnni" not in flags and machine in _X86:
        text = (
            f"the runtime chose kernels without VNNI instructions ({', '.join(narrow[:_SHOWN])}) "
            "although the CPU has them: INT8 saves memory traffic more than arithmetic"
        )
        return Reason("no_vnni", text)
    return None


def _layers_compared(lane: Profiled, reference: Profiled, name: str) -> Reason:
    kinds = (LayerKind.INTEGER, LayerKind.FLOAT)
    own, other = (p.milliseconds(p.kind(*kinds)) for p in (lane, reference))
    rest, other_rest = lane.total_ms - own, reference.total_ms - other
    text = (
        f"layers with weights take {own:.3g} ms, and {other:.3g} ms in {name}; "
        f"everything else takes {rest:.3g} ms, and {other_rest:.3g} ms there"
    )
    return Reason("layer_times", text)


def _names(layers: Sequence[LayerTime]) -> str:
    largest = sorted(layers, key=lambda layer: layer.microseconds, reverse=True)
    names = ", ".join(layer.name for layer in largest[:_SHOWN])
    hidden = len(layers) - _SHOWN
    return f"{names} and {hidden} more" if hidden > 0 else names


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
