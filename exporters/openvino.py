"""OpenVINO: an IR whose FakeQuantize operators its low-precision passes turn into INT8 kernels."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgekit.errors import EdgekitError, ExportError, MissingDependencyError
from edgekit.graph import OpKind, argument, op_kind
from edgekit.lowering import LoweredModel, LoweringProfile
from edgekit.quant.saturation import Pairing
from edgekit.runners.openvino_import import import_openvino, without_reports
from edgekit.sites import SitedModel
from edgekit.target import Exported
from edgekit.types import FLOAT_BITS, Artifact, Cpu, TensorScheme
from edgekit.weight_only import StoredWeights, WeightOnlyRules

from ._bags import refuse_bags
from ._i4_constants import pack_constants
from ._maxima import write_maxima_as_top
from ._packing import narrow_notes
from ._qdq import realize, widening_casts
from ._weight_only import KEPT_FLOAT, keep_activations_float

_INTEGER = frozenset(
    {
        OpKind.CONV,
        OpKind.CONV_TRANSPOSE,
        OpKind.LINEAR,
        OpKind.MATMUL,
        OpKind.MAX_POOL,
        OpKind.AVERAGE_POOL,
        OpKind.GLOBAL_POOL,
        OpKind.CONCAT,
    }
)


_UNPACKED = StoredWeights(
    packed=False, remark="OpenVINO unpacks those of convolutions when it loads the file"
)
_STORED = {
    OpKind.LINEAR: StoredWeights(),
    OpKind.EMBEDDING: StoredWeights(),
    OpKind.CONV: _UNPACKED,
    OpKind.CONV_TRANSPOSE: _UNPACKED,
}
_ODD = StoredWeights(
    odd_inputs="4-bit codes in INT8, because OpenVINO 2026.4 multiplies wrongly by INT4 rows of "
    "odd length"
)
_WEIGHT_ONLY = WeightOnlyRules(
    {
        **{(kind, bits): rule for kind, rule in _STORED.items() for bits in (4, 8)},
        (OpKind.LINEAR, 4): _ODD,
    },
    keeps_layout=True,  # its kernels read weights row by row, and would transpose them first
)


class OpenVinoTarget:
    """Writes ``openvino/model.xml`` and ``openvino/model.bin``."""

    name = "openvino"
    executed = True
    why_simulated = None
    activation_bits = frozenset({8, FLOAT_BITS})

    def missing(self) -> EdgekitError | None:
        """Return the import error of the runtime, if any."""
        try:
            import_openvino()
        except MissingDependencyError as error:
            return error
        return None

    def profile(self, cpu: Cpu) -> LoweringProfile:
        """Return the rules of OpenVINO's CPU plugin (targets.md, section 3).

        Inputs of integer operators are quantized, and so is the operand of a residual sum that
        does not come out of a convolution's accumulator: the plugin then adds it there. Signed
        tensors take zero point 0, which costs no extra pass and keeps transposed convolutions
        on integers.
        """
        return LoweringProfile(
            target=self.name,
            integer_kinds=_INTEGER,
            quantized_outputs=frozenset(),
            unsigned=TensorScheme(8, signed=False, symmetric=True),
            signed=TensorScheme(8, signed=True, symmetric=True),
            absorb_clamps=True,
            fused_sum=True,
            pairing=Pairing.CHANNELS if cpu is Cpu.AVX2 else Pairing.NONE,
            packs_int4=True,
            float_reasons={
                OpKind.RECURRENT: "OpenVINO's CPU plugin runs recurrent layers in float",
                OpKind.EMBEDDING_BAG: "OpenVINO sums up its rows in float",
            },
            weight_only=_WEIGHT_ONLY,
        )

    def unsupported(self, sited: SitedModel) -> Mapping[str, str]:
        """Return transposed convolutions with groups."""
        return {
            node.name: "OpenVINO's CPU plugin has no INT8 kernel for transposed convolutions with "
            "groups"
            for node in sited.model.graph.graph.nodes
            if op_kind(node) is OpKind.CONV_TRANSPOSE and argument(node, 6, "groups", 1) != 1
        }

    def export(self, template: ir.Model, lowered: LoweredModel, directory: Path) -> Exported:
        """Convert the QDQ graph and save it; weights stay INT8 or INT4 constants on disk.

        Raises:
            ExportError: OpenVINO's converter rejects the graph.
            UnsupportedError: the graph has a bag of embeddings that is a loop.
        """
        openvino = import_openvino()
        refuse_bags(lowered.sited, "OpenVINO")
        folder = directory / self.name
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch) / "model.onnx"
            graph = realize(template, lowered)
            write_maxima_as_top(graph)
            ir.save(graph, source)
            try:
                with without_reports():
                    converted = openvino.convert_model(source)
            except _converter_errors() as error:
                raise ExportError(
                    f"OpenVINO rejects the graph: {str(error).strip().splitlines()[0]}",
                    "leave the target out with --targets, and report the network to edgekit",
                ) from error
            pack_constants(converted, widening_casts(graph))
            packed = any(layer.packed for layer in lowered.placement.stored.values())
            if packed:
                keep_activations_float(converted)
            _number_nodes(converted, {node.name for node in graph.graph})
            _forget_inner_names(converted)
            openvino.save_model(converted, folder / "model.xml", compress_to_fp16=False)
        files = (f"{self.name}/model.xml", f"{self.name}/model.bin")
        notes = (*narrow_notes(lowered), *([KEPT_FLOAT] if packed else []))
        return Exported(Artifact(self.name, files[0], files, notes))


def _number_nodes(model: Any, ours: set[str | None]) -> None:
    """Number the nodes that OpenVINO added; its own numbers go on counting within a process."""
    for index, node in enumerate(model.get_ordered_ops()):
        name = node.get_friendly_name()
        if name not in ours and re.fullmatch(r"[A-Za-z]+_\d+", name):
            node.set_friendly_name(f"{node.get_type_name()}_{index}")


def _forget_inner_names(model: Any) -> None:
    """Leave tensor names to inputs and outputs.

    The CPU plugin drops casts of an input, and the input then answers to the cast's name as well.
    """
    public = {name for port in (*model.inputs, *model.outputs) for name in port.names}
    for node in model.get_ordered_ops():
        for port in node.outputs():
            if not port.names & public:
                port.set_names(set())


def _converter_errors() -> tuple[type[Exception], ...]:
    """What a conversion raises: the converter's own exceptions derive from ``Exception`` alone."""
    frontend = import_openvino("openvino.frontend")
    return (
        RuntimeError,
        frontend.GeneralFailure,
        frontend.InitializationFailure,
        frontend.NotImplementedFailure,
        frontend.OpConversionFailure,
        frontend.OpValidationFailure,
    )
