"""Captured modules beside what the modules compute themselves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from edgekit.capture import CapturedModel, capture, example_inputs
from edgekit.graph import op_name
from edgekit.types import InputSpec


@pytest.fixture(scope="session")
def captured() -> Callable[..., CapturedModel]:
    """Capture a module and check the graph against it, for one sample and for three.

    Arguments: the module, and shapes of float inputs without the batch or input specifications.
    """

    def build(module: nn.Module, *inputs: InputSpec | tuple[int, ...]) -> CapturedModel:
        specs = [
            spec if isinstance(spec, InputSpec) else InputSpec(f"x{index}", (1, *spec))
            for index, spec in enumerate(inputs)
        ]
        model = capture(module, specs)
        module.eval()
        for batch in (1, 3) if model.batch else (1,):
            generator = torch.Generator().manual_seed(batch)
            feeds = tuple(
                torch.randint(2, 5, feed.shape, generator=generator)
                if feed.dtype == torch.int64
                else feed
                for feed in example_inputs(specs, batch, generator)
            )
            expected = module(*(feed.clone() for feed in feeds))
            expected = expected if isinstance(expected, tuple) else (expected,)
            for got, value in zip(model(*feeds), expected, strict=True):
                # the same products and sums, at most in another order: some units in the last
                # place of float32, relative to the largest value
                assert got.shape == value.shape
                assert torch.allclose(
                    got, value, rtol=1e-5, atol=1e-5 * (1 + float(value.detach().abs().max()))
                )
        return model

    return build


@pytest.fixture(scope="session")
def operators() -> Callable[[CapturedModel], list[str]]:
    """The names of a graph's operators, in order."""

    def names(model: CapturedModel) -> list[str]:
        nodes = model.graph.graph.nodes
        return [op_name(node) for node in nodes if node.op == "call_function"]

    return names


@pytest.fixture(scope="session")
def parameters() -> Callable[[CapturedModel], dict[str, Tensor]]:
    """What the graph's ``get_attr`` nodes read, by name."""

    def found(model: CapturedModel) -> dict[str, Tensor]:
        known = {**dict(model.graph.named_parameters()), **dict(model.graph.named_buffers())}
        nodes = model.graph.graph.find_nodes(op="get_attr")
        return {str(node.target): known[str(node.target)] for node in nodes}

    return found
