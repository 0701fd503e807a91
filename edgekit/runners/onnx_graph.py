"""Reads the node list of an ONNX file without the ``onnx`` package, which devices seldom have.

Only what the reports on execution need is decoded: nodes, and the names, element types and shapes
of initializers. Weights are skipped over, not copied.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgekit.errors import LoadError

# Field numbers of onnx.proto (ModelProto, GraphProto, NodeProto, TensorProto).
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OP_TYPE = 1, 2, 3, 4
_NODE_ATTRIBUTE, _NODE_DOMAIN = 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_INTEGER = 1, 3
_TENSOR_DIMS, _TENSOR_DATA_TYPE, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 8, 9

# Wire types of the protobuf encoding.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# TensorProto.DataType of the types that weights are stored in.
_TYPE_NAMES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    10: "float16",
    11: "float64",
    16: "bfloat16",
    21: "uint4",
    22: "int4",
}


@dataclass(frozen=True, slots=True)
class GraphNode:
    """One operator: its tensors by name, empty for an absent optional input; its integers."""

    op_type: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    integers: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """Nodes in file order; element type (``"int8"``, ...) and shape of each initializer."""

    nodes: tuple[GraphNode, ...]
    initializers: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def read_onnx_graph(path: Path) -> OnnxGraph:
    """Read the main graph of an ONNX file.

    Raises:
        LoadError: the file cannot be read or is not an ONNX model.
    """
    nodes: list[GraphNode] = []
    initializers: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    with _readable(path):
        for number, value in _graph_fields(path):
            if number == _GRAPH_NODE:
                nodes.append(_read_node(value))
            elif number == _GRAPH_INITIALIZER:
                name, initializers[name], shapes[name], _ = _read_initializer(value)
    if not nodes:
        raise LoadError(f"'{path}' is not an ONNX file: it holds no graph node")
    return OnnxGraph(tuple(nodes), initializers, shapes)


def read_initializers(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Read FP32 initializers of an ONNX file; those absent or stored in another way are left out.

    Raises:
        LoadError: the file cannot be read or is not an ONNX model.
    """
    found = {}
    with _readable(path):
        for number, value in _graph_fields(path):
            if number != _GRAPH_INITIALIZER:
                continue
            name, type_name, shape, raw = _read_initializer(value)
            if name in names and type_name == "float32" and len(raw) == 4 * math.prod(shape):
                found[name] = np.frombuffer(raw, "<f4").reshape(shape)
    return found


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, IndexError) as error:
        raise LoadError(f"'{path}' is not a readable ONNX file: {error}") from error


def _graph_fields(path: Path) -> Iterator[tuple[int, memoryview]]:
    """Yield the fields of the main graph that have a length."""
    for model_field, graph in _fields(memoryview(path.read_bytes())):
        if model_field != _MODEL_GRAPH or isinstance(graph, int):
            continue
        for number, value in _fields(graph):
            if not isinstance(value, int):
                yield number, value


def _read_node(data: memoryview) -> GraphNode:
    inputs: list[str] = []
    outputs: list[str] = []
    integers: dict[str, int] = {}
    text = {_NODE_NAME: "", _NODE_OP_TYPE: "", _NODE_DOMAIN: ""}
    for number, value in _fields(data):
        if isinstance(value, int):
            continue
        if number == _NODE_INPUT:
            inputs.append(_text(value))
        elif number == _NODE_OUTPUT:
            outputs.append(_text(value))
        elif number == _NODE_ATTRIBUTE:
            integers.update(_read_integer(value))
        elif number in text:
            text[number] = _text(value)
    op_type, domain, name = text[_NODE_OP_TYPE], text[_NODE_DOMAIN], text[_NODE_NAME]
    return GraphNode(op_type, domain, name, tuple(inputs), tuple(outputs), integers)


def _read_integer(data: memoryview) -> dict[str, int]:
    """Return an attribute that is one integer; nothing for any other."""
    name, number = "", None
    for key, value in _fields(data):
        if key == _ATTRIBUTE_NAME and not isinstance(value, int):
            name = _text(value)
        elif key == _ATTRIBUTE_INTEGER and isinstance(value, int):
            number = value - (1 << 64) if value >> 63 else value  # two's complement
    return {} if number is None else {name: number}


def _read_initializer(data: memoryview) -> tuple[str, str, tuple[int, ...], memoryview]:
    """Return name, element type, shape and raw bytes, which are empty if stored in another way."""
    name, type_name, raw = "", "unknown", data[:0]
    sizes: list[int] = []
    for number, value in _fields(data):
        if number == _TENSOR_DIMS:
            sizes += [value] if isinstance(value, int) else _packed(value)
        elif isinstance(value, int):
            if number == _TENSOR_DATA_TYPE:
                type_name = _TYPE_NAMES.get(value, "unknown")
        elif number == _TENSOR_NAME:
            name = _text(value)
        elif number == _TENSOR_RAW:
            raw = value
    return name, type_name, tuple(sizes), raw


def _packed(data: memoryview) -> list[int]:
    """Return the numbers of a packed repeated field."""
    values = []
    position = 0
    while position < len(data):
        value, position = _varint(data, position)
        values.append(value)
    return values


def _text(value: memoryview) -> str:
    return bytes(value).decode("utf-8")


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield field number and value of one protobuf message."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire_type == _BYTES:
            size, position = _varint(data, position)
        elif wire_type in (_FIXED64, _FIXED32):
            size = 8 if wire_type == _FIXED64 else 4
        else:
            raise ValueError(f"unknown wire type {wire_type} at byte {position}")
        if position + size > len(data):
            raise ValueError(f"truncated at byte {position}")
        yield number, data[position : position + size]
        position += size


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError(f"overlong number at byte {position}")
