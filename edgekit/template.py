"""The ONNX template: the sited graph, translated once by ``torch.onnx`` for all targets."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import onnx
import onnx_ir as ir
import onnxscript
import torch

from edgekit.capture import CapturedModel, example_inputs
from edgekit.errors import ExportError
from edgekit.sites import SITE, SitedModel

DOMAIN = "edgekit"
SITE_OP = "Site"
OPSET = 20  # the newest that TensorRT 10.3 (JetPack 6) documents; 19 and up allow FP16 scales

_SCHEMA = onnx.defs.OpSchema(
    SITE_OP,
    DOMAIN,
    1,
    inputs=[onnx.defs.OpSchema.FormalParameter("x", "T")],
    outputs=[onnx.defs.OpSchema.FormalParameter("y", "T")],
    type_constraints=[("T", ["tensor(float)"], "float tensors")],
    attributes=[onnx.defs.OpSchema.Attribute("index", onnx.defs.OpSchema.AttrType.INT)],
)


def build_template(sited: SitedModel) -> ir.Model:
    """Translate the graph into ONNX with a placeholder node for every site.

    Node and value names are those of the FX graph, so decisions made there can be found here.

    Raises:
        ExportError: an operator has no ONNX form.
    """
    model = sited.model
    shapes = _dynamic_shapes(model)
    example = example_inputs(model.inputs, 2 if model.batch else 1)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # torch's own deprecations, none of the user's making
        program = torch.export.export(model.graph, example, dynamic_shapes=shapes)
        try:
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=[spec.name for spec in model.inputs],
                output_names=[spec.name for spec in model.outputs],
                custom_translation_table={SITE: _translation()},
                optimize=True,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ExportError(
                f"torch.onnx cannot translate the network: {_cause(error)}",
                "replace the operator by one that ONNX has, or report it to edgekit",
            ) from error
    assert exported is not None
    template = exported.model
    _name_batch(template, model)
    _strip_metadata(template)
    return template


def _translation() -> Callable[..., Any]:
    if not onnx.defs.has(SITE_OP, DOMAIN):
        onnx.defs.register_schema(_SCHEMA)
    opset = onnxscript.values.Opset(DOMAIN, 1)

    def site(x: Any, index: int) -> Any:
        return opset.Site(x, index=index)

    return site


def _dynamic_shapes(model: CapturedModel) -> tuple[dict[int, object], ...] | None:
    if not model.batch and not any(spec.variable_axes for spec in model.inputs):
        return None
    batch = torch.export.Dim("batch")
    shapes = []
    for spec in model.inputs:
        axes: dict[int, object] = {0: batch} if model.batch and spec.dynamic_batch else {}
        axes.update(dict.fromkeys(spec.variable_axes, torch.export.Dim.AUTO))
        shapes.append(axes)
    return tuple(shapes)


def _name_batch(template: ir.Model, model: CapturedModel) -> None:
    """Call the batch dimension ``batch`` in place of torch's own symbol."""
    if not model.batch:
        return
    symbol = next(
        value.shape[0].value
        for value, spec in zip(template.graph.inputs, model.inputs, strict=True)
        if spec.dynamic_batch
        and value.shape is not None
        and isinstance(value.shape[0], ir.SymbolicDim)
    )
    for value in _values(template.graph):
        if value.shape is None:
            continue
        sizes = [  # a new shape: those that torch shares between values are frozen
            ir.SymbolicDim("batch")
            if isinstance(size, ir.SymbolicDim) and size.value == symbol
            else size
            for size in value.shape
        ]
        value.shape = ir.Shape(sizes)


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *(output for node in graph for output in node.outputs)]


def _strip_metadata(template: ir.Model) -> None:
    """Drop stack traces and module paths: they name files of the machine that exported."""
    template.metadata_props.clear()
    template.graph.metadata_props.clear()
    for value in (*_values(template.graph), *template.graph.initializers.values()):
        value.metadata_props.clear()
    for node in template.graph:
        node.metadata_props.clear()
        node.doc_string = None
    template.producer_name, template.producer_version = "edgekit", None


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


# "torchvision is not installed", four times; and what the optimizers leave as it is
for _name in ("torch.onnx._internal.exporter._registration", "torch.onnx", "onnxscript", "onnx_ir"):
    logging.getLogger(_name).setLevel(logging.ERROR)
