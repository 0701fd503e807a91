"""From TorchScript to a ``torch.export`` program."""

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
from edgekit.torchscript_graph import ScriptGraph
from edgekit.types import InputSpec

_EXPORT_AGAIN = (
    "export the original network where it is defined: torch.export.save(torch.export.export("
    "network.eval(), (example,)), 'net.pt2'), and pass net.pt2; or pass the same file with --arch"
)


def torchscript_signature(network: torch.jit.ScriptModule, where: str) -> ForwardSignature:
    """Return the inputs of a TorchScript network, which Python's ``inspect`` cannot see.

    Raises:
        LoadError: the network has no forward pass, as some layers have not when scripted alone.
    """
    forward: Any = getattr(network, "forward", None)
    if forward is None:
        raise LoadError(
            f"{where}: this TorchScript network has no forward pass of its own", _EXPORT_AGAIN
        )
    arguments = [argument for argument in forward.schema.arguments[1:] if not argument.kwarg_only]
    required = sum(not argument.has_default_value() for argument in arguments)
    return ForwardSignature(tuple(argument.name for argument in arguments), required, False)


def torchscript_program(
    network: torch.jit.ScriptModule, inputs: Sequence[InputSpec], where: str
) -> ExportedProgram:
    """Convert a TorchScript network in evaluation mode.

    The batch stays dynamic where the code allows it.

    Raises:
        LoadError: it cannot be converted; the hint says how to export the network again.
    """
    with quiet_torch():
        for batch in (2, 1):  # torch takes a size of 1 for a constant
            program, reason = _converted(network, inputs, batch)
            if program is not None:
                return program
    raise LoadError(
        f"{where}: this TorchScript network cannot be converted ({printable(reason, 200)})",
        _EXPORT_AGAIN,
    )


def _converted(
    network: torch.jit.ScriptModule, inputs: Sequence[InputSpec], batch: int
) -> tuple[ExportedProgram | None, str]:
    """Return the converted program, or nothing and the reason."""
    axes = []
    for spec in inputs:
        free = [*spec.variable_axes, *([0] if spec.dynamic_batch and batch > 1 else [])]
        axes.append(dict.fromkeys(free, torch.export.Dim.AUTO))
    try:
        network = network.float().eval()
        program = torch.export.export(
            ScriptGraph(network), example_inputs(inputs, batch), dynamic_shapes=(tuple(axes),)
        )
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
