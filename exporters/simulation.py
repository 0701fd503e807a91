"""What no runtime executes: a QDQ graph whose narrow activations ONNX Runtime computes in float."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from edgekit.errors import EdgekitError
from edgekit.graph import OpKind
from edgekit.lowering import LoweredModel, LoweringProfile
from edgekit.quant.saturation import Pairing
from edgekit.sites import SitedModel
from edgekit.target import Exported
from edgekit.types import Artifact, Cpu, TensorScheme

from ._qdq import realize

_QUANTIZED = frozenset({OpKind.CONV, OpKind.CONV_TRANSPOSE, OpKind.LINEAR, OpKind.MATMUL})


class SimulationTarget:
    """Writes ``simulation/model.onnx``, the arithmetic of a scheme without integer kernels."""

    name = "simulation"
    executed = False
    why_simulated = "no runtime has an integer kernel for 4-bit activations: simulated"
    activation_bits = frozenset(range(2, 8))

    def missing(self) -> EdgekitError | None:
        """The ONNX file needs nothing but edgekit."""
        return None

    def profile(self, cpu: Cpu) -> LoweringProfile:
        """Return the rules that papers on 4-bit activations share.

        Inputs of weighted operators are quantized, on unsigned grids with a zero point; everything
        between them stays float, and nothing is fused or absorbed, because there is no kernel whose
        rules would have to be met.
        """
        del cpu
        return LoweringProfile(
            target=self.name,
            integer_kinds=_QUANTIZED,
            quantized_outputs=frozenset(),
            unsigned=TensorScheme(8, signed=False, symmetric=True),
            signed=TensorScheme(8, signed=False, symmetric=False),
            absorb_clamps=False,
            fused_sum=False,
            pairing=Pairing.NONE,
            packs_int4=True,
            float_reasons={
                OpKind.RECURRENT: "the simulation leaves recurrent layers in float",
                OpKind.EMBEDDING_BAG: "the simulation sums up its rows in float",
            },
        )

    def unsupported(self, sited: SitedModel) -> Mapping[str, str]:
        """Arithmetic in float takes every operator."""
        del sited
        return {}

    def export(self, template: ir.Model, lowered: LoweredModel, directory: Path) -> Exported:
        """Write the QDQ graph; 4-bit codes and quantizers take ONNX's own 4-bit types."""
        path = directory / self.name / "model.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        ir.save(realize(template, lowered), path)
        name = f"{self.name}/model.onnx"
        return Exported(Artifact(self.name, name, (name,)))
