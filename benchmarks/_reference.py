"""Step: the float network as any user would export it, which the peers start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks._cases import CASES
from benchmarks._process import answer

_OPSET = 18  # ONNX Runtime's quantizer takes it


def export_float(request: dict[str, Any]) -> dict[str, Any]:
    """Write a case's network. Request: ``case``, ``weights``, ``out``."""
    import edgekit
    from edgekit.options import InputOption

    case = CASES[request["case"]]
    arch = None if case.weights is None else case.arch
    inputs = () if case.weights is None else (InputOption(None, case.shape),)
    module = edgekit.load(Path(request["weights"]), arch=arch, inputs=inputs).module
    write_float(module, case.shape, Path(request["out"]))
    return {}


def write_float(module: torch.nn.Module, shape: tuple[int, ...], out: Path) -> None:
    """Write a network of one input with ``torch.onnx.export``, dynamic batch.

    Not edgekit's own ``float/model.onnx``: whatever edgekit does to a network must not reach the
    peers.
    """
    torch.onnx.export(
        module,
        (torch.zeros(2, *shape[1:]),),  # batch 2: a batch of 1 would be taken as constant
        str(out),
        input_names=["image"],
        output_names=["logits"],
        opset_version=_OPSET,
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        verbose=False,
    )


if __name__ == "__main__":
    answer(export_float)
