"""Layer times of OpenVINO, from the execution graph of a model compiled with ``PERF_COUNT``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from edgekit.runners.layer_times import LayerKind, LayerProfile, LayerTime

_WEIGHTED = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
_CONVERSIONS = ("Reorder", "Convert", "FakeQuantize")
# The ONNX reader splits biases off, and the low-precision passes move scales behind an operator:
# both append to its name.
_APPENDED = re.compile(r"(/WithoutBiases|/Dequantization\w+)+$")
_INTEGER_TYPES = ("u8", "i8")
_FLOAT_KERNELS = ("_f32", "_f16", "_bf16")  # of layers whose weights alone are integers
_ITEM_BYTES = {"u4": 0.5, "i4": 0.5, "u8": 1, "i8": 1, "f16": 2, "bf16": 2, "f32": 4, "i32": 4}


def read_profile(
    runtime_model: Any, batch: int, whole_microseconds: float, layers_of: Mapping[str, str]
) -> LayerProfile:
    """Read the execution graph of a compiled model that has run.

    Args:
        runtime_model: what ``CompiledModel.get_runtime_model()`` returns.
        batch: size of the first axis, where the graph leaves it open.
        whole_microseconds: typical time of an inference.
        layers_of: name of the layer that an operator of the model computes, by the operator's name.
    """
    layers: list[tuple[int, LayerTime]] = []
    for operator in runtime_model.get_ops():
        told = operator.get_rt_info()
        time = _text(told, "execTimeMcs")
        if not time.isdigit() or not int(time):
            continue
        op, precision = _text(told, "layerType"), _text(told, "runtimePrecision")
        kernel = _text(told, "primitiveType")
        work = _work(operator, op, told, batch) if op in _WEIGHTED else None
        original = _text(told, "originalLayersNames").split(",")[0]
        name = _APPENDED.sub("", original) or str(operator.get_friendly_name())
        layer = LayerTime(
            name=layers_of.get(name, name),
            op=op,
            kind=_kind(op, precision, kernel),
            microseconds=float(time),
            kernel=kernel,
            multiply_adds=None if work is None else work[0],
            moved_bytes=None if work is None else work[1],
        )
        layers.append((int(_text(told, "execOrder") or 0), layer))
    ordered = tuple(layer for _order, layer in sorted(layers, key=lambda item: item[0]))
    inside = sum(layer.microseconds for layer in ordered)
    return LayerProfile(ordered, max(whole_microseconds - inside, 0.0))


def _kind(op: str, precision: str, kernel: str) -> LayerKind:
    if op in _WEIGHTED:
        integer = precision in _INTEGER_TYPES and not kernel.endswith(_FLOAT_KERNELS)
        return LayerKind.INTEGER if integer else LayerKind.FLOAT
    return LayerKind.CONVERSION if op in _CONVERSIONS else LayerKind.OTHER


def _work(operator: Any, op: str, told: Any, batch: int) -> tuple[int, int] | None:
    """Return multiply-adds and moved bytes, or ``None`` where the weights are not constant."""
    if operator.get_input_size() < 2:
        return None
    constant = operator.input_value(1).get_node()
    if _text(constant.get_rt_info(), "layerType") != "Const":
        return None
    read, weights, written = (
        _sizes(port.get_partial_shape(), batch)
        for port in (operator.input(0), operator.input(1), operator.output(0))
    )
    if read is None or weights is None or written is None:
        return None
    # Products of one output value: the weights divided by the output's channels. A transposed
    # convolution is the same seen from its input.
    values = read if op == "Deconvolution" else written
    channels = values[1] if "onvolution" in op and len(values) > 1 else values[-1]
    products = math.prod(values) * math.prod(weights) // channels
    item = _ITEM_BYTES.get(_text(told, "runtimePrecision"), 4)  # of the weights
    output = _ITEM_BYTES.get(_text(told, "outputPrecisions").split(",")[0], 4)
    unpacks = _text(told, "primitiveType").endswith(_FLOAT_KERNELS)
    moved = math.prod(weights) * item + math.prod(read) * (output if unpacks else item)
    return products, int(moved + math.prod(written) * output)


def _sizes(shape: Any, batch: int) -> list[int] | None:
    if shape.rank.is_dynamic:
        return None
    sizes = [batch if d.is_dynamic and i == 0 else d for i, d in enumerate(shape)]
    if any(not isinstance(size, int) and size.is_dynamic for size in sizes):
        return None
    return [size if isinstance(size, int) else size.get_length() for size in sizes] or [1]


def _text(info: Any, key: str) -> str:
    return str(info[key].astype(str)) if key in info else ""
