"""From TorchScript to a ``torch.export`` program, as far as torch can convert it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._export.converter import TS2EPConverter
from torch.export import ExportedProgram

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
        try:
            return TS2EPConverter(network, example_inputs(inputs, 2)).convert()
        except READER_ERRORS:
            pass  # the code has the batch of its example written into it, or cannot be converted
        try:
            return TS2EPConverter(network, example_inputs(inputs, 1)).convert()
        except READER_ERRORS as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise LoadError(
                f"{where}: torch cannot convert this TorchScript network "
                f"({printable(reason, 200)})",
                _EXPORT_AGAIN,
            ) from error
