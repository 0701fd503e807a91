"""ONNX Runtime on CPUs: a QDQ graph whose patterns its optimizer turns into integer kernels."""

from __future__ import annotations

from edgekit.graph import OpKind
from edgekit.lowering import LoweringProfile
from edgekit.quant.saturation import Pairing
from edgekit.types import Cpu, TensorScheme

_INTEGER = frozenset(
    {
        OpKind.CONV,
        OpKind.LINEAR,
        OpKind.ADD,
        OpKind.MAX_POOL,
        OpKind.AVERAGE_POOL,
        OpKind.CONCAT,
        OpKind.RESIZE,
    }
)


def profile(cpu: Cpu) -> LoweringProfile:
    """Return the rules of ONNX Runtime's integer kernels (targets.md, section 4.1).

    Activations are unsigned: the signed form costs an extra pass on x86. Every tensor between
    integer operators is quantized, and a clamp disappears in the range behind it.
    """
    return LoweringProfile(
        target="onnxruntime",
        integer_kinds=_INTEGER,
        quantized_outputs=_INTEGER - {OpKind.LINEAR},  # QGemm also returns floats
        unsigned=TensorScheme(8, signed=False, symmetric=True),
        signed=TensorScheme(8, signed=False, symmetric=False),
        absorb_clamps=True,
        fused_sum=False,
        pairing=Pairing.FLAT if cpu is Cpu.AVX2 else Pairing.NONE,
        integer_bias=True,
    )
