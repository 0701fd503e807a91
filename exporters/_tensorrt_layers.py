"""Reads which precision TensorRT gave to each layer from its own description of an engine.

The engine inspector (one line per layer) and the builder's verbose log print the same text. The
log has it even where no GPU is present and the engine therefore cannot be opened. TensorRT 10
writes ``Format/Datatype: Row major Int8 format``, TensorRT 11 and RTX write ``Datatype: Int8``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from edgekit.types import ExecutedLayer

HEADING = "Layers:"

_LAYER = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], "
    r"(?:Constants: \[(?P<constants>.*?)\], )?Outputs: ",
    re.MULTILINE,
)
_ONNX_NAME = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_DATA_TYPE = re.compile(r"Data[Tt]ype: ([^,}]+)")
_PRECISIONS = (
    ("int8", re.compile(r"int8", re.IGNORECASE)),
    ("float16", re.compile(r"half|fp16", re.IGNORECASE)),
    ("bfloat16", re.compile(r"bf(loat)?16", re.IGNORECASE)),
    ("float32", re.compile(r"float|fp32", re.IGNORECASE)),
)
_FLOATS = ("float16", "bfloat16", "float32")
_STORED = re.compile(r"Data[Tt]ype: (?:[^,}]* )?Int([48])\b")  # constants of unpacking kernels
# Layers that prepare or finish the work of a convolution or matrix product and carry its ONNX
# name too: generated elementwise kernels (kgen), copies into another memory format, constants.
_AUXILIARY = frozenset({"kgen", "Reformat", "NoOp", "PointWise", "PointWiseV2", "Constant"})


@dataclass(frozen=True, slots=True)
class _EngineLayer:
    kind: str
    onnx_names: frozenset[str]
    precision: str


def onnx_name(metadata: str, layer_name: str) -> str:
    """Return the ONNX node that a network layer came from, by its metadata."""
    found = _ONNX_NAME.search(metadata)
    return found.group(1) if found else layer_name


def executed_layers(description: str, weighted: Mapping[str, str]) -> tuple[ExecutedLayer, ...]:
    """Return the executed precision of every weighted layer.

    Args:
        description: what the engine inspector prints in its one-line format, or the builder's
            log message that starts with :data:`HEADING`.
        weighted: ONNX node name of each convolution and matrix product to its operator.

    Returns:
        One entry for each item of ``weighted`` in the same order. The precision is that of the
        kernel's first input, with that of its weights where these alone are integers, or
        ``"unknown"`` where the description does not name the node.
    """
    layers = _parse(description)
    return tuple(ExecutedLayer(name, op, _precision(layers, name)) for name, op in weighted.items())


def _precision(layers: list[_EngineLayer], name: str) -> str:
    named = [layer for layer in layers if name in layer.onnx_names]
    kernels = [layer for layer in named if layer.kind not in _AUXILIARY]
    # A small product may be computed inside a generated kernel: then the last one is the product,
    # what comes before it lays out its input.
    chosen = kernels[0] if kernels else (named[-1] if named else None)
    return chosen.precision if chosen is not None else "unknown"


def _parse(description: str) -> list[_EngineLayer]:
    layers = []
    for line in description.splitlines():
        match = _LAYER.match(line.strip())
        if match is None:
            continue
        names = _ONNX_NAME.findall(line) or match["name"].split(" + ")
        precision = _first_type(match["inputs"])
        stored = _STORED.search(match["constants"] or "")
        if stored is not None and precision in _FLOATS:
            precision = f"int{stored.group(1)} weights, {precision} math"
        layers.append(_EngineLayer(match["kind"], frozenset(names), precision))
    return layers


def _first_type(inputs: str) -> str:
    stated = _DATA_TYPE.search(inputs)
    if stated is None:
        return "unknown"
    for precision, pattern in _PRECISIONS:
        if pattern.search(stated.group(1)):
            return precision
    return stated.group(1).strip().lower()
