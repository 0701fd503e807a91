"""OpenVINO: an IR whose FakeQuantize operators its low-precision passes turn into INT8 kernels."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgekit.errors import EdgekitError, ExportError, MissingDependencyError, require
from edgekit.graph import OpKind
from edgekit.lowering import LoweredModel, LoweringProfile
from edgekit.quant.saturation import Pairing
from edgekit.sites import SitedModel
from edgekit.target import Exported
from edgekit.types import Artifact, Cpu, TensorScheme

from ._qdq import realize

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


class OpenVinoTarget:
    """Writes ``openvino/model.xml`` and ``openvino/model.bin``."""

    name = "openvino"
    executed = True

    def missing(self) -> EdgekitError | None:
        """Return the import error of the runtime, if any."""
        try:
            require("openvino", extra="openvino")
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
        )

    def unsupported(self, sited: SitedModel) -> Mapping[str, str]:
        """No operator beyond what the profile's kinds say."""
        del sited
        return {}

    def export(self, template: ir.Model, lowered: LoweredModel, directory: Path) -> Exported:
        """Convert the QDQ graph and save it; weights stay INT8 constants on disk.

        Raises:
            ExportError: OpenVINO's converter rejects the graph.
        """
        openvino = require("openvino", extra="openvino")
        folder = directory / self.name
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch) / "model.onnx"
            graph = realize(template, lowered)
            ir.save(graph, source)
            try:
                converted = openvino.convert_model(source)
            except _converter_errors() as error:
                raise ExportError(
                    f"OpenVINO rejects the graph: {str(error).strip().splitlines()[0]}",
                    "leave the target out with --targets, and report the network to edgekit",
                ) from error
            _number_nodes(converted, {node.name for node in graph.graph})
            openvino.save_model(converted, folder / "model.xml", compress_to_fp16=False)
        files = (f"{self.name}/model.xml", f"{self.name}/model.bin")
        return Exported(Artifact(self.name, files[0], files))


def _number_nodes(model: Any, ours: set[str | None]) -> None:
    """Number the nodes that OpenVINO added; its own numbers go on counting within a process."""
    for index, node in enumerate(model.get_ordered_ops()):
        name = node.get_friendly_name()
        if name not in ours and re.fullmatch(r"[A-Za-z]+_\d+", name):
            node.set_friendly_name(f"{node.get_type_name()}_{index}")


def _converter_errors() -> tuple[type[Exception], ...]:
    """What a conversion raises: the converter's own exceptions derive from ``Exception`` alone."""
    frontend = require("openvino.frontend", extra="openvino")
    return (
        RuntimeError,
        frontend.GeneralFailure,
        frontend.InitializationFailure,
        frontend.NotImplementedFailure,
        frontend.OpConversionFailure,
        frontend.OpValidationFailure,
    )
