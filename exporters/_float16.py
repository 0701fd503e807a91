"""Float parts of a quantized ONNX graph in FP16, as strongly typed TensorRT executes them.

TensorRT 11 has no precision flags: a tensor runs in the type that the ONNX file gives it, so a
float layer between two INT8 layers stays FP32 unless the file says FP16. This pass says so. It
asks the operator schemas what may be FP16, where ``T`` admits ``float16``, and puts a Cast where
one side of an edge may and the other may not; there is no list of operators.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import ExportError, UnsupportedError, require

if TYPE_CHECKING:
    import onnx_ir as ir

_FLOAT16 = "tensor(float16)"
_FLOAT16_MAX = 65504.0
_SMALLEST_SUBNORMAL = 2.0**-24
# Attributes that name the type of an output, where the schema does not derive it from an input.
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "output_datatype")


def to_float16(model: ir.Model, *, keep_float32: Collection[str] = ()) -> ir.Model:
    """Return a copy of ``model`` whose float32 tensors are float16 between its inputs and outputs.

    Integer tensors and the integer codes of weights stay as they are. A scale of QuantizeLinear
    or DequantizeLinear becomes float16, because from opset 19 on the dequantized tensor has the
    type of its scale. Graph inputs and outputs stay float32, with one Cast each.

    Args:
        model: an ONNX graph of opset 19 or later; it is not changed.
        keep_float32: names of nodes that go on computing in float32. Casts are put around them,
            none between two of them, and their constants (scales included) stay float32.

    Raises:
        ExportError: a constant exceeds the FP16 range, a scale is not exactly an FP16 number, a
            tensor has no known type, or ``keep_float32`` names no node of the graph.
        UnsupportedError: the graph has an operator without ONNX schema, a function or a subgraph.
    """
    require("onnx", extra="torch")
    common = require("onnx_ir.passes.common", extra="torch")
    result = model.clone()
    _refuse_unknown(result, frozenset(keep_float32))
    # A constant as initializer can serve a float16 and a float32 reader without losing bits.
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(result)
    _complete_types(result)
    rewriter = _Rewriter(result, frozenset(keep_float32))
    for node in list(result.graph):
        rewriter.rewrite(node)
    rewriter.restore_outputs()
    rewriter.drop_unused_constants()
    return result


class _Rewriter:
    """Converts node by node in topological order; ``_twins`` holds each value's other form."""

    def __init__(self, model: ir.Model, kept: frozenset[str]) -> None:
        self._ir: Any = require("onnx_ir", extra="torch")
        self._graph = model.graph
        self._opset = model.graph.opset_imports.get("", 1)
        self._kept = kept
        self._float, self._half = self._ir.DataType.FLOAT, self._ir.DataType.FLOAT16
        self._twins: dict[ir.Value, ir.Value] = {}
        # Only what was float32 takes part: a tensor that is float16 from the start stays one.
        self._converted: set[ir.Value] = set()
        self._names = {value.name for value in _all_values(model.graph)}

    def rewrite(self, node: ir.Node) -> None:
        """Give ``node`` inputs of the type that it can take, and its outputs their new type."""
        schema = _schema(node, self._opset)
        kept = node.name in self._kept
        for index, value in enumerate(node.inputs):
            if value is None or not self._was_float32(value):
                continue
            half = not kept and _FLOAT16 in _parameter_types(schema.inputs, index)
            dtype = self._half if half else self._float
            if value.dtype != dtype:
                exact = index == 1 and node.op_type in ("QuantizeLinear", "DequantizeLinear")
                node.replace_input_with(index, self._twin(value, dtype, node, exact))
        if not kept:
            self._rewrite_attributes(node, schema)
        for index, value in enumerate(node.outputs):
            if value.dtype != self._float:
                continue
            self._converted.add(value)
            if not kept and _FLOAT16 in _parameter_types(schema.outputs, index):
                # A new object: the clone shares its type objects with the caller's model.
                value.type = self._ir.TensorType(self._half)

    def restore_outputs(self) -> None:
        """Cast every graph output back to float32 under its own name."""
        restored: dict[ir.Value, ir.Value] = {}
        for index, value in enumerate(self._graph.outputs):
            if value.dtype != self._half or value not in self._converted:
                continue
            if value not in restored:
                output = self._twin(value, self._float, None, exact=False)
                value.name, output.name = self._unused_name(f"{value.name}_float16"), value.name
                output.metadata_props.update(value.metadata_props)
                restored[value] = output
            self._graph.outputs[index] = restored[value]

    def drop_unused_constants(self) -> None:
        """Remove the float32 constants that every reader left, and pass on their names."""
        for value in list(self._graph.initializers.values()):
            if value.uses() or value.is_graph_output() or value.is_graph_input():
                continue
            twin = self._twins.get(value)
            assert value.name is not None
            self._graph.initializers.pop(value.name)
            if twin is not None:
                twin.name = value.name

    def _unused_name(self, name: str) -> str:
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name

    def _was_float32(self, value: ir.Value) -> bool:
        return value.dtype == self._float or value in self._converted

    def _twin(
        self, value: ir.Value, dtype: ir.DataType, reader: ir.Node | None, exact: bool
    ) -> ir.Value:
        """Return ``value`` in the other type: a converted constant, or a Cast before ``reader``."""
        constant = value.is_initializer() and not value.is_graph_input()
        if constant and exact:
            _require_exact_scale(value)
        if value in self._twins:
            return self._twins[value]
        twin = self._half_constant(value) if constant else self._cast(value, dtype, reader)
        self._converted.add(twin)
        self._twins[value] = twin
        return twin

    def _cast(self, value: ir.Value, dtype: ir.DataType, reader: ir.Node | None) -> ir.Value:
        suffix = "float16" if dtype == self._half else "float32"
        name = self._unused_name(f"{value.name}_{suffix}")
        node = self._ir.Node(
            "",
            "Cast",
            [value],
            [self._ir.Attr("to", self._ir.AttributeType.INT, int(dtype))],
            name=f"cast_{name}",
            num_outputs=1,
        )
        twin: ir.Value = node.outputs[0]
        twin.name, twin.shape, twin.type = name, _copied(value.shape), self._ir.TensorType(dtype)
        if reader is None:
            self._graph.append(node)
        else:
            self._graph.insert_before(reader, node)
        return twin

    def _half_constant(self, value: ir.Value) -> ir.Value:
        name = self._unused_name(f"{value.name}_float16")
        array = _to_half(value.name or "", _array(value))
        twin: ir.Value = self._ir.Value(
            name=name,
            shape=value.shape,
            type=self._ir.TensorType(self._half),
            const_value=self._ir.tensor(array, name=name),
        )
        self._graph.register_initializer(twin)
        return twin

    def _rewrite_attributes(self, node: ir.Node, schema: Any) -> None:
        """Let attributes that determine an output's type say float16 where they said float32."""
        outputs = range(len(node.outputs))
        if not any(_FLOAT16 in _parameter_types(schema.outputs, index) for index in outputs):
            return
        ir = self._ir
        for name in _TYPE_ATTRIBUTES:
            stated = node.attributes.get(name)
            if stated is not None:
                code = stated.as_int()
            elif name in schema.attributes:
                code = schema.attributes[name].default_value.i
            else:
                continue
            if code == self._float:
                node.attributes[name] = ir.Attr(name, ir.AttributeType.INT, int(self._half))
        for name, attribute in list(node.attributes.items()):
            if attribute.type != ir.AttributeType.TENSOR:
                continue
            tensor = attribute.as_tensor()
            if tensor.dtype == self._float:
                array = _to_half(f"{node.name}.{name}", tensor.numpy())
                node.attributes[name] = ir.AttrTensor(name, ir.tensor(array))
        if node.op_type == "ConstantOfShape" and "value" not in node.attributes:
            zero = ir.tensor(np.zeros(1, np.float16))  # the default is a float32 zero
            node.attributes["value"] = ir.AttrTensor("value", zero)


def _refuse_unknown(model: ir.Model, kept: frozenset[str]) -> None:
    """Stop at what the pass cannot type: functions, subgraphs, foreign operators, wrong names."""
    if model.functions:
        names = ", ".join(sorted(function.name for function in model.functions.values()))
        raise UnsupportedError(
            f"FP16 conversion: the graph has functions ({names})", "inline them before the export"
        )
    opset = model.graph.opset_imports.get("", 1)
    for node in model.graph:
        _schema(node, opset)
        if any(attribute.type.name.startswith("GRAPH") for attribute in node.attributes.values()):
            raise UnsupportedError(
                f"FP16 conversion: node '{node.name}' ({node.op_type}) has a subgraph",
                "export a network without data-dependent control flow",
            )
    unknown = kept - {node.name for node in model.graph if node.name}
    if unknown:
        raise ExportError(f"keep_float32 names no node of the graph: {', '.join(sorted(unknown))}")


def _schema(node: ir.Node, opset: int) -> Any:
    onnx: Any = require("onnx", extra="torch")
    if not onnx.defs.has(node.op_type, opset, node.domain):
        operator = f"{node.domain or 'ai.onnx'}:{node.op_type}"
        raise UnsupportedError(
            f"FP16 conversion: node '{node.name}' is a '{operator}', which ONNX opset {opset} "
            "does not define",
            "TensorRT parses standard ONNX operators only: replace this one",
        )
    return onnx.defs.get_schema(node.op_type, opset, node.domain)


def _parameter_types(parameters: Any, index: int) -> Collection[str]:
    """Types that the schema allows for parameter ``index``; the last one may be variadic."""
    types: Collection[str] = parameters[min(index, len(parameters) - 1)].types
    return types


def _complete_types(model: ir.Model) -> None:
    """Infer the types that the graph does not state; every value has one afterwards."""

    def missing() -> list[str]:
        # An output without a name is one that nobody reads.
        return [v.name for v in _all_values(model.graph) if v.dtype is None and v.name]

    if not missing():
        return
    common = require("onnx_ir.passes.common", extra="torch")
    common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)
    if names := missing():
        raise ExportError(
            f"FP16 conversion: {len(names)} tensors have no known type, first '{names[0]}'",
            "the ONNX file needs value_info for them",
        )


def _all_values(graph: ir.Graph) -> list[ir.Value]:
    produced = [value for node in graph for value in node.outputs]
    return [*graph.inputs, *graph.initializers.values(), *produced]


def _copied(shape: ir.Shape | None) -> ir.Shape | None:
    return None if shape is None else shape.copy()


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()


def _to_half(name: str, array: np.ndarray) -> np.ndarray:
    """Round float32 values to FP16; infinities (attention masks) stay infinite.

    Raises:
        ExportError: a finite value exceeds the FP16 range.
    """
    magnitude = np.abs(array[np.isfinite(array)])
    if magnitude.size and magnitude.max() > _FLOAT16_MAX:
        raise ExportError(
            f"FP16 conversion: constant '{name}' holds {magnitude.max():.6g}, beyond the FP16 "
            f"range of +-{_FLOAT16_MAX:g}",
            "keep the nodes that read it in float32, or scale the network's values down",
        )
    half = array.astype(np.float16)
    if half.size == 1 and half.item() == 0 and array.item() != 0:
        # A lone tiny number is an epsilon that keeps a divisor from zero: it must not become zero.
        half = np.full_like(half, np.copysign(_SMALLEST_SUBNORMAL, array.item()))
    return half


def _require_exact_scale(value: ir.Value) -> None:
    scale = _array(value)
    with np.errstate(over="ignore"):  # what overflows becomes infinite and is reported below
        wrong = (scale.astype(np.float16).astype(scale.dtype) != scale) | ~(scale > 0)
    if wrong.any():
        raise ExportError(
            f"FP16 conversion: scale '{value.name}' holds {scale[wrong].flat[0]:.9g}, which is not "
            "a positive FP16 number",
            "round the scales to FP16 before the weights are quantized with them",
        )
