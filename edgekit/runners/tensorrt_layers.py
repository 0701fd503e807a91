"""Executed precision of a TensorRT engine, read from its inspector's JSON.

TensorRT 10 writes ``"Format/Datatype"`` for each tensor of a layer; 11 splits it into ``"Format"``
and ``"DataType"``. Engines built without detailed profiling verbosity hold layer names only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from edgekit.types import ExecutedLayer

_WEIGHTED_TYPE = re.compile(r"conv(?!ert)|gemm|matrix_?multiply|matmul|fully_?connected", re.I)
_COPY_TYPES = ("Reformat", "NoOp", "Constant", "Shuffle")
_COPY_NAME = "Reformatting CopyNode"  # followed by the name of the layer that it feeds
_ONNX_NAME = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_PRECISIONS = (
    (re.compile(r"int8", re.I), "int8"),
    (re.compile(r"int4", re.I), "int4"),
    (re.compile(r"bf16|bfloat", re.I), "bfloat16"),
    (re.compile(r"fp16|half|float16", re.I), "float16"),
    (re.compile(r"fp8", re.I), "float8"),
    (re.compile(r"fp32|float", re.I), "float32"),
)
UNKNOWN = "unknown"


def executed_layers(inspector_json: str) -> list[ExecutedLayer]:
    """List the weighted layers of an engine.

    Args:
        inspector_json: what ``EngineInspector.get_engine_information(JSON)`` returned.

    Returns:
        Layers in execution order. Precision is ``"int8"`` only where the layer's first input and,
        if they are told, its weights are INT8; it names both types where its weights alone are
        integers, and is ``"unknown"`` where the engine does not say.
    """
    layers: list[ExecutedLayer] = []
    for layer in json.loads(inspector_json).get("Layers", ()):
        if isinstance(layer, str):
            if _WEIGHTED_TYPE.search(layer) and not layer.startswith(_COPY_NAME):
                layers.append(ExecutedLayer(layer, UNKNOWN, UNKNOWN))
        elif _is_weighted(layer):
            kind = str(layer.get("ParameterType") or layer.get("LayerType"))
            layers.append(ExecutedLayer(_name(layer), kind, _precision(layer)))
    return layers


def _is_weighted(layer: Mapping[str, Any]) -> bool:
    kind = str(layer.get("LayerType", ""))
    if kind in _COPY_TYPES:
        return False
    if _WEIGHTED_TYPE.search(f"{kind} {layer.get('ParameterType', '')}"):
        return True
    # The graph compiler's own kernels have a neutral type; what they hold stands in the tactic.
    return bool(_WEIGHTED_TYPE.search(str(layer.get("TacticName", ""))))


def _name(layer: Mapping[str, Any]) -> str:
    # Fused layers list every ONNX node they hold: the weighted one names the layer.
    names = _ONNX_NAME.findall(str(layer.get("Metadata", "")))
    weighted = [name for name in names if _WEIGHTED_TYPE.search(name)]
    return str((weighted or names or [layer.get("Name", "")])[0])


def _precision(layer: Mapping[str, Any]) -> str:
    inputs = layer.get("Inputs") or ()
    told = [_tensor_type(inputs[0])] if inputs else []
    weights = layer.get("Weights")
    if isinstance(weights, Mapping) and "Type" in weights:
        told.append(_match(str(weights["Type"])))
    known = [name for name in told if name != UNKNOWN]
    if not known:
        return UNKNOWN
    stored = {_tensor_type(constant) for constant in layer.get("Constants") or ()} | {*known[1:]}
    integers = sorted(stored & {"int4", "int8"})
    if integers and known[0] not in ("int4", "int8"):
        return f"{integers[0]} weights, {known[0]} math"
    return next((name for name in known if name != "int8"), "int8")


def _tensor_type(tensor: Any) -> str:
    if not isinstance(tensor, Mapping):
        return _match(str(tensor))
    for key in ("DataType", "Format/Datatype", "Format"):
        found = _match(str(tensor.get(key, "")))
        if found != UNKNOWN:
            return found
    return UNKNOWN


def _match(text: str) -> str:
    return next((name for pattern, name in _PRECISIONS if pattern.search(text)), UNKNOWN)
