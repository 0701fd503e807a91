"""Run a TorchScript graph operator by operator in Python, so that ``torch.export`` can follow it.

``torch.export`` does not look into TorchScript. Here each operator of the graph is called as Python
would call it: sizes and what is computed from them are Python numbers, branches and loops over
such numbers are taken as they come, and what remains are operators on tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.files.operators import does_more_than_compute
from edgekit.torchscript_values import ON_VALUES, PRIMITIVES

_MAX_TURNS = 10_000  # of one loop; a network that turns more often cannot be written as a graph
_NUMBERS = (int, float, torch.SymInt, torch.SymFloat)


class ScriptGraph(nn.Module):
    """The forward pass of a TorchScript network; takes and returns what the network does.

    ``known`` holds the values that do not depend on the inputs, by their names in the graph.
    """

    def __init__(self, network: torch.jit.ScriptModule) -> None:
        super().__init__()
        self._graph: Any = network.inlined_graph
        self._known: dict[str, Any] = {}
        self._kept: dict[str, str] = {}  # values that are tensors -> the buffers that hold them
        self._numbers: dict[str, int | float] = {}  # constant tensors that are one number
        own, *_ = self._graph.inputs()
        owners = {own.debugName(): network}
        for node in _nodes(self._graph):
            if node.kind() == "prim::Constant":
                self._keep(node.output().debugName(), node.output().toIValue())
            elif node.kind() == "prim::GetAttr":
                name = node.output().debugName()
                value = getattr(owners[node.input().debugName()], node.s("name"))
                if isinstance(value, torch.jit.ScriptModule):
                    owners[name] = value
                else:
                    self._keep(name, value)

    def _keep(self, name: str, value: Any) -> None:
        if not isinstance(value, Tensor):
            self._known[name] = value
            return
        if value.dim() == 0:
            self._numbers[name] = value.item()
        self._kept[name] = f"tensor_{len(self._kept)}"
        if isinstance(value, nn.Parameter):
            self.register_parameter(self._kept[name], nn.Parameter(value.detach(), False))
        else:
            self.register_buffer(self._kept[name], value)

    def forward(self, *inputs: Tensor) -> Any:
        """Run the graph; inputs that are not given are ``None``.

        Raises:
            ValueError: the graph does something that is no computation on tensors.
        """
        _, *parameters = self._graph.inputs()
        values = {parameter.debugName(): None for parameter in parameters}
        values |= self._known | {name: getattr(self, kept) for name, kept in self._kept.items()}
        values |= {p.debugName(): value for p, value in zip(parameters, inputs, strict=False)}
        outputs = self._run(self._graph, values)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _run(self, block: Any, values: dict[str, Any]) -> list[Any]:
        """Run the nodes of a graph or block; ``values`` takes what they compute."""
        for node in block.nodes():
            kind = node.kind()
            if kind in ("prim::Constant", "prim::GetAttr"):
                continue
            names = [value.debugName() for value in node.inputs()]
            if kind == "prim::If":
                branch, other = node.blocks()
                outputs = self._run(branch if values[names[0]] else other, values)
            elif kind == "prim::Loop":
                outputs = self._loop(node, [values[name] for name in names], values)
            else:
                result = self._call(node, kind, names, values)
                outputs = [result] if node.outputsSize() == 1 else list(result or ())
            values.update(zip((v.debugName() for v in node.outputs()), outputs, strict=True))
        return [values[value.debugName()] for value in block.outputs()]

    def _loop(self, node: Any, operands: list[Any], values: dict[str, Any]) -> list[Any]:
        turns, going, *carried = operands
        (block,) = node.blocks()
        names = [value.debugName() for value in block.inputs()]
        turn = 0
        while going and turn < turns:
            if turn == _MAX_TURNS:
                raise ValueError(f"a loop turns more than {_MAX_TURNS:,} times")
            values.update(zip(names, (turn, *carried), strict=True))
            going, *carried = self._run(block, values)
            turn += 1
        return carried

    def _call(self, node: Any, kind: str, names: list[str], values: dict[str, Any]) -> Any:
        operands = [values[name] for name in names]
        if kind in PRIMITIVES:
            return PRIMITIVES[kind](*operands)
        if kind in ON_VALUES:
            plain = [
                self._numbers.get(name, value) if isinstance(value, Tensor) else value
                for name, value in zip(names, operands, strict=True)
            ]
            if not any(isinstance(value, Tensor) for value in plain):
                return ON_VALUES[kind](*plain)
        if kind == "aten::_convolution":
            return _convolution(*operands[:9])
        return _call_operator(node, operands)


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Tensor:
    """Call the convolution that Python code would have called."""
    axes = weight.dim() - 2
    if transposed:
        function = getattr(torch, f"conv_transpose{axes}d")
        result: Tensor = function(
            x, weight, bias, stride, padding, output_padding, groups, dilation
        )
    else:
        function = getattr(torch, f"conv{axes}d")
        result = function(x, weight, bias, stride, padding, dilation, groups)
    return result


def _call_operator(node: Any, operands: list[Any]) -> Any:
    library, _, name = node.kind().partition("::")
    if node.schema() == "(no schema)" or does_more_than_compute(name):
        raise ValueError(f"the network uses {node.kind()}")
    schema = torch._C.parse_schema(node.schema())
    packet = getattr(getattr(torch.ops, library), name)
    overload = getattr(packet, schema.overload_name or "default")
    positional, keywords = [], {}
    for argument, value in zip(schema.arguments, operands, strict=True):
        if str(argument.type) in ("Tensor", "Optional[Tensor]") and isinstance(value, _NUMBERS):
            dtype = torch.int64 if isinstance(value, int | torch.SymInt) else torch.float32
            value = torch.ops.aten.scalar_tensor.default(value, dtype=dtype)
        if argument.kwarg_only:
            keywords[argument.name] = value
        else:
            positional.append(value)
    return overload(*positional, **keywords)
