"""ONNX Runtime on CPUs: a QDQ graph whose patterns its optimizer turns into integer kernels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import DeduplicateInitializersPass

from edgekit.errors import EdgekitError, MissingDependencyError, require
from edgekit.graph import OpKind
from edgekit.lowering import LoweredModel, LoweringProfile
from edgekit.quant.saturation import Pairing
from edgekit.sites import SitedModel
from edgekit.target import Exported
from edgekit.types import FLOAT_BITS, Artifact, Cpu, TensorScheme
from edgekit.weight_only import StoredWeights, WeightOnlyRules

from ._packing import narrow_notes
from ._qdq import realize
from ._weight_only import use_packed_operators

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


_UNPACKED = "stays float32: ONNX Runtime would unpack integer weights of convolutions at every call"
_WEIGHT_ONLY = WeightOnlyRules(
    {
        (OpKind.LINEAR, 4): StoredWeights(),
        (OpKind.LINEAR, 8): StoredWeights(
            remark="slower than float32, because ONNX Runtime unpacks 8-bit weights at every call"
        ),
        (OpKind.EMBEDDING, 4): StoredWeights(),
        (OpKind.EMBEDDING, 8): StoredWeights(),
    },
    {OpKind.CONV: _UNPACKED, OpKind.CONV_TRANSPOSE: _UNPACKED},
)


_MOST_CHANNELS = 1 << 16


class OnnxRuntimeTarget:
    """Writes ``onnxruntime/model.onnx``."""

    name = "onnxruntime"
    executed = True
    why_simulated = None
    activation_bits = frozenset({8, FLOAT_BITS})

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
            packs_int4=True,
            float_reasons={
                OpKind.RECURRENT: "ONNX Runtime runs recurrent layers in float32: its one integer "
                "kernel for them quantizes anew at every call",
                OpKind.CONV_TRANSPOSE: "ONNX Runtime has no INT8 kernel for transposed "
                "convolutions: they compute in float32, from INT8 weights",
                OpKind.EMBEDDING_BAG: "ONNX Runtime sums up its rows in float32, in a loop",
            },
            weight_only=_WEIGHT_ONLY,
        )

    def unsupported(self, sited: SitedModel) -> Mapping[str, str]:
        """No operator beyond what the profile's kinds say."""
        del sited
        return {}

    def export(self, template: ir.Model, lowered: LoweredModel, directory: Path) -> Exported:
        """Write the QDQ graph; ``InferenceSession`` needs no option to run it on integers."""
        path = directory / self.name / "model.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        graph = realize(template, lowered)
        use_packed_operators(graph, lowered)
        # Zero points of as many channels are alike, and next to 4-bit codes they would count.
        DeduplicateInitializersPass(size_limit=_MOST_CHANNELS)(graph)
        ir.save(graph, path)
        name = f"{self.name}/model.onnx"
        return Exported(Artifact(self.name, name, (name,), narrow_notes(lowered)))
