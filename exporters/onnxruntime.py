"""ONNX Runtime on CPUs: a QDQ graph whose patterns its optimizer turns into integer kernels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from edgekit.errors import EdgekitError, MissingDependencyError, require
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
        OpKind.ADD,
        OpKind.MAX_POOL,
        OpKind.AVERAGE_POOL,
        OpKind.GLOBAL_POOL,
        OpKind.CONCAT,
        OpKind.RESIZE,
    }
)


class OnnxRuntimeTarget:
    """Writes ``onnxruntime/model.onnx``."""

    name = "onnxruntime"
    executed = True

    def missing(self) -> EdgekitError | None:
        """Return the import error of the runtime, if any."""
        try:
            require("onnxruntime", extra="onnxruntime")
        except MissingDependencyError as error:
            return error
        return None

    def profile(self, cpu: Cpu) -> LoweringProfile:
        """Return the rules of ONNX Runtime's integer kernels (targets.md, section 4.1).

        Activations are unsigned: on x86 the signed form costs an extra pass, and ARM kernels take
        either. Every tensor between integer operators is quantized, and a clamp disappears in the
        range behind it. There is no integer kernel for transposed convolutions, but between
        quantizers ONNX Runtime rounds their weights to INT8 by itself, with one scale for all
        channels: ours have one for each.
        """
        return LoweringProfile(
            target=self.name,
            integer_kinds=_INTEGER,
            # QGemm also returns floats, and transposed convolutions compute in float
            quantized_outputs=_INTEGER - {OpKind.LINEAR, OpKind.CONV_TRANSPOSE},
            unsigned=TensorScheme(8, signed=False, symmetric=True),
            signed=TensorScheme(8, signed=False, symmetric=False),
            absorb_clamps=True,
            fused_sum=False,
            pairing=Pairing.FLAT if cpu is Cpu.AVX2 else Pairing.NONE,
            integer_bias=True,
            float_reasons={
                OpKind.RECURRENT: "ONNX Runtime runs recurrent layers in float32: its one integer "
                "kernel for them quantizes anew at every call",
                OpKind.CONV_TRANSPOSE: "ONNX Runtime has no INT8 kernel for transposed "
                "convolutions: they compute in float32, from INT8 weights",
                OpKind.EMBEDDING_BAG: "ONNX Runtime sums up its rows in float32, in a loop",
            },
        )

    def unsupported(self, sited: SitedModel) -> Mapping[str, str]:
        """No operator beyond what the profile's kinds say."""
        del sited
        return {}

    def export(self, template: ir.Model, lowered: LoweredModel, directory: Path) -> Exported:
        """Write the QDQ graph; ``InferenceSession`` needs no option to run it on integers."""
        path = directory / self.name / "model.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        ir.save(realize(template, lowered), path)
        name = f"{self.name}/model.onnx"
        return Exported(Artifact(self.name, name, (name,)))
