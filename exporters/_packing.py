"""Weights below 8 bits: which of them take half a byte in a file, and what that buys."""

from __future__ import annotations

from edgekit.lowering import LoweredModel
from edgekit.quant.affine import WeightCodes

_NIBBLE_BITS = 4


def packs(lowered: LoweredModel, codes: WeightCodes) -> bool:
    """Whether a target writes these codes as INT4."""
    return lowered.profile.packs_int4 and codes.bits <= _NIBBLE_BITS


def narrow_notes(lowered: LoweredModel) -> tuple[str, ...]:
    """Say what weights below 8 bits buy where they run on 8-bit kernels; nothing without any."""
    integer = [
        codes for index, codes in lowered.weights.items() if lowered.stored_layer(index) is None
    ]
    narrow = [codes for codes in integer if codes.bits < 8]
    if not narrow:
        return ()
    packed = sum(packs(lowered, codes) for codes in narrow)
    layers = f"{len(narrow)} of {len(integer)} layers have weights below 8 bits"
    if not packed:
        return (
            f"{layers}, in INT8 tensors: same INT8 kernels, latency and size as W8A8; "
            "the gain is in compression",
        )
    return (f"{layers}: same INT8 kernels and latency as W8A8; the gain is size",)
