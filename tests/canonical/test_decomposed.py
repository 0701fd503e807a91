"""Programs that were decomposed look like the networks that they were."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from edgekit.capture import CapturedModel

Capture = Callable[..., CapturedModel]
Operators = Callable[[CapturedModel], list[str]]

BLOCKS: dict[str, tuple[nn.Module, tuple[int, ...], list[str]]] = {
    "conv1d": (nn.Conv1d(4, 6, 3, padding=1), (4, 9), ["conv1d"]),
    "conv2d": (nn.Conv2d(4, 6, 3, 2, 1, 2, groups=2), (4, 9, 8), ["conv2d"]),
    "transposed": (
        nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2, dilation=2),
        (4, 5, 6),
        ["conv_transpose2d"],
    ),
    "linear": (nn.Linear(4, 6), (4,), ["linear"]),
    "batch norm": (nn.BatchNorm2d(4), (4, 3, 3), ["batch_norm"]),
    "layer norm": (nn.LayerNorm(4), (3, 4), ["layer_norm"]),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_decomposed_program(captured: Capture, operators: Operators, name: str) -> None:
    module, shape, expected = BLOCKS[name]
    example = torch.randn(2, *shape)
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(module.eval(), (example,), dynamic_shapes=batch)
    decomposed = program.run_decompositions().module(check_guards=False)

    class Program(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = decomposed(x)
            return y

    assert operators(captured(Program(), shape)) == expected
