"""TensorRT: QDQ ONNX in its own form with FP16 between, and engines by whichever builder exists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from torch import fx

from edgekit.errors import EdgekitError
from edgekit.graph import OpKind, argument, constant, op_kind
from edgekit.lowering import LoweredModel, LoweringProfile
from edgekit.quant.saturation import Pairing
from edgekit.sites import SITE, SitedModel
from edgekit.types import FLOAT_BITS, Artifact, Cpu, InputSpec, TensorScheme
from edgekit.weight_only import StoredWeights, WeightOnlyRules

from ._bags import refuse_bags
from ._float16 import to_float16
from ._islands import float32_islands
from ._packing import narrow_notes
from ._qdq import realize
from ._tensorrt_builder import (
    JETSON_NOTE,
    PORTABILITY_NOTE,
    EngineBuild,
    build_command,
    find_builder,
    start_build,
)

_INTEGER = frozenset({OpKind.CONV, OpKind.CONV_TRANSPOSE, OpKind.LINEAR, OpKind.MATMUL})
_GROUP_MULTIPLE = 4  # channels for each group of an INT8 grouped convolution (targets.md, 1.1)


_NO_CONVOLUTION = "stays float16: TensorRT unpacks integer weights in matrix products only"
_WEIGHT_ONLY = WeightOnlyRules(
    {
        (OpKind.LINEAR, 4): StoredWeights(per_channel=False),
        (OpKind.LINEAR, 8): StoredWeights(),
    },
    {
        OpKind.CONV: _NO_CONVOLUTION,
        OpKind.CONV_TRANSPOSE: _NO_CONVOLUTION,
        OpKind.EMBEDDING: "stays float16: TensorRT looks up rows in float tables only",
    },
    math="float16",
)


class TensorRtTarget:
    """Writes ``tensorrt/model.onnx`` and, where a builder is installed, engines beside it."""

    name = "tensorrt"
    executed = False
    why_simulated = None
    activation_bits = frozenset({8, FLOAT_BITS})

    def missing(self) -> EdgekitError | None:
        """The ONNX file needs nothing but edgekit; engines are built where a builder is."""
        return None

    def profile(self, cpu: Cpu) -> LoweringProfile:
        """Return TensorRT's explicit-quantization rules (targets.md, sections 1.1 and 1.2).

        Signed codes with zero point 0 on the inputs of weighted operators only; of a residual sum
        the identity operand alone, so that the sum fuses into the convolution.
        """
        del cpu
        signed = TensorScheme(8, signed=True, symmetric=True)
        return LoweringProfile(
            target=self.name,
            integer_kinds=_INTEGER,
            quantized_outputs=frozenset(),
            unsigned=signed,
            signed=signed,
            absorb_clamps=False,
            fused_sum=True,
            pairing=Pairing.NONE,
            float16=True,
            float_reasons={
                OpKind.RECURRENT: "TensorRT runs recurrent layers as loops of FP16 products",
                OpKind.EMBEDDING_BAG: "TensorRT sums up its rows in float",
            },
            weight_only=_WEIGHT_ONLY,
        )

    def unsupported(self, sited: SitedModel) -> Mapping[str, str]:
        """Return grouped convolutions whose groups are no multiple of four channels."""
        reasons = {}
        for node in sited.model.graph.graph.nodes:
            reason = _group_reason(sited, node) if op_kind(node) is OpKind.CONV else None
            if reason is not None:
                reasons[node.name] = reason
        return reasons

    def export(self, template: ir.Model, lowered: LoweredModel, directory: Path) -> EngineExport:
        """Write the FP16 QDQ graph and start the engine build, if a builder is installed.

        Raises:
            UnsupportedError: the graph has what strongly typed ONNX cannot say in FP16.
        """
        refuse_bags(lowered.sited, "TensorRT's form with FP16 types")
        path = directory / self.name / "model.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        graph = realize(template, lowered)
        ir.save(to_float16(graph, keep_float32=float32_islands(graph)), path)
        inputs = lowered.sited.model.inputs
        builder = find_builder()
        build = None if builder is None else start_build(builder, path, path.parent, inputs)
        return EngineExport(directory, path, inputs, build, narrow_notes(lowered))


@dataclass(frozen=True)
class EngineExport:
    """An export whose engines may still be under construction."""

    directory: Path
    path: Path
    inputs: tuple[InputSpec, ...]
    build: EngineBuild | None
    notes: tuple[str, ...] = ()

    def wait(self) -> Artifact:
        """Return the ONNX file and the engines.

        Raises:
            ExportError: the parser or the builder rejects the file.
        """
        model = self.path.relative_to(self.directory).as_posix()
        if self.build is None:
            local = Path(self.path.name)
            command = build_command(local, self.inputs)
            note = f"no TensorRT builder here; build on the device with: {command}"
            return Artifact("tensorrt", model, (model,), (*self.notes, note))
        report = self.build.wait()
        engines = tuple(
            engine.path.relative_to(self.directory.resolve()).as_posix()
            for engine in report.engines
        )
        rtx = any(".rtx." in engine for engine in engines)
        notes = [*self.notes, f"engines built by {report.engines[0].builder}", PORTABILITY_NOTE]
        notes += [JETSON_NOTE] if rtx else []
        notes += [f"warning: {text}" for text in report.quantization_warnings]
        return Artifact("tensorrt", model, (model, *engines), tuple(notes))

    def close(self) -> None:
        """Stop the builder if it still runs."""
        if self.build is not None:
            self.build.close()


def _group_reason(sited: SitedModel, node: fx.Node) -> str | None:
    groups = argument(node, 6, "groups", 1)
    weight = node.args[1]
    if isinstance(weight, fx.Node) and weight.target is SITE:
        weight = weight.args[0]
    tensor = constant(sited.model.graph, weight)
    if tensor is None or not isinstance(groups, int) or groups == 1 or tensor.shape[1] == 1:
        return None
    inputs, outputs = tensor.shape[1], tensor.shape[0] // groups
    if inputs % _GROUP_MULTIPLE == 0 and outputs % _GROUP_MULTIPLE == 0:
        return None
    return (
        f"{inputs} input and {outputs} output channels in each of {groups} groups; TensorRT's "
        f"INT8 grouped convolution needs multiples of {_GROUP_MULTIPLE}"
    )
