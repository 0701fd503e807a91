"""From TorchScript to a ``torch.export`` program, as far as torch can convert it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from edgekit.capture import example_inputs
from edgekit.errors import LoadError
from edgekit.files.quiet import quiet_torch
from edgekit.files.torch_save import READER_ERRORS
from edgekit.files.wording import printable
from edgekit.signature import ForwardSignature
from edgekit.types import InputSpec

_EXPORT_AGAIN = (
    "export the original network where it is defined: torch.export.save(torch.export.export("
    "network.eval(), (example,)), 'net.pt2'), and pass net.pt2; or pass the same file with --arch"
)


def torchscript_signature(network: torch.jit.ScriptModule) -> ForwardSignature:
    """Return the inputs of a TorchScript network, which Python's ``inspect`` cannot see."""
    forward: Any = network.forward
    arguments = [argument for argument in forward.schema.arguments[1:] if not argument.kwarg_only]
    required = sum(not argument.has_default_value() for argument in arguments)
    return ForwardSignature(tuple(argument.name for argument in arguments), required, False)


def torchscript_program(
    network: torch.jit.ScriptModule, inputs: Sequence[InputSpec], where: str
) -> ExportedProgram:
    """Convert a TorchScript network in evaluation mode.

    The batch stays dynamic where the code allows it; it is tried at 2 first, since torch takes a
    size of 1 for a constant.

    Raises:
        LoadError: torch cannot convert it; the hint says how to export the network again.
    """
    network = network.float().eval()
    with quiet_torch():
        for batch in (2, 1):
            program, reason = _converted(network, inputs, batch)
            if program is not None:
                return program
    raise LoadError(
        f"{where}: torch cannot convert this TorchScript network ({printable(reason, 200)})",
        _EXPORT_AGAIN,
    )


def _converted(
    network: torch.jit.ScriptModule, inputs: Sequence[InputSpec], batch: int
) -> tuple[ExportedProgram | None, str]:
    """Return the converted program, or nothing and the reason."""
    try:
        # imported here: the module behind it imports every ONNX package that it finds
        from torch._export.converter import TS2EPConverter

        program = TS2EPConverter(network, example_inputs(inputs, batch)).convert()
        example = example_inputs(inputs, 1, torch.Generator().manual_seed(0))
        same = _agree(network, program, example)
    except READER_ERRORS as error:
        return None, next(iter(str(error).splitlines()), type(error).__name__)
    return (program, "") if same else (None, "the converted network computes something else")


def _agree(
    network: torch.jit.ScriptModule, program: ExportedProgram, inputs: tuple[Tensor, ...]
) -> bool:
    with torch.no_grad():
        expected = pytree.tree_leaves(network(*inputs))
        got = pytree.tree_leaves(program.module(check_guards=False)(*inputs))
    # The same kernels run; TorchScript may only have fused some of them.
    return len(got) == len(expected) and all(
        torch.allclose(one, other, rtol=1e-3, atol=1e-5, equal_nan=True)
        for one, other in zip(got, expected, strict=True)
    )
