"""Weights that are computed from parameters, computed once.

Weight norm, spectral norm, weight standardization or ``parameter.T`` are subgraphs that no input
reaches. Folded into constants they become ordinary weights, which integers can hold.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgekit.graph import argument, fetch, op_name, store

GROWTH = 2
"""A constant may be this much larger than the parameters behind it; a broadcast stays one."""
SMALL = 1 << 20
"""Bytes that a constant may always have."""

_NAMESPACES = ("aten", "prims")
_PARAMETRIZED = re.compile(r"(?P<owner>.+\.|)parametrizations\.(?P<name>\w+)\..+")
_PART = re.compile(r"(?P<name>.+)_(?:v|g|orig)")


def fold_constants(graph_module: fx.GraphModule) -> None:
    """Replace what depends on no input by parameters, under the names of the weights they are.

    Subgraphs that occur twice become one constant. What changes state, draws random numbers or is
    much larger than the parameters behind it stays.
    """
    graph = graph_module.graph
    values = _evaluate(graph_module)
    folded = []
    for node in [node for node in values if node.op == "call_function"]:
        value = values[node]
        if not isinstance(value, Tensor) or all(user in values for user in node.users):
            continue
        held = _unused(graph_module, node.name)  # until it is known which names are free
        store(graph_module, held, value.detach().contiguous())
        with graph.inserting_before(node):
            constant = graph.get_attr(held)
        constant.meta["val"] = node.meta["val"]
        folded.append((constant, _main_source(node, values)))
        for user in [user for user in node.users if user not in values]:
            user.replace_input_with(node, constant)
    if not folded:
        return
    graph.eliminate_dead_code()
    _delete_unread(graph_module)
    for constant, source in folded:
        _rename(graph_module, constant, _weight_name(source))


def _evaluate(graph_module: fx.GraphModule) -> dict[fx.Node, object]:
    """Return the value of every node that depends on no input and may be folded."""
    values: dict[fx.Node, object] = {}
    sizes: dict[fx.Node, dict[str, int]] = {}  # parameters behind a node, with their bytes
    known: dict[str, fx.Node] = {}
    for node in list(graph_module.graph.nodes):
        if node.op == "get_attr":
            value = _attribute(graph_module, str(node.target))
            if value is not None:
                values[node], sizes[node] = value, {str(node.target): _bytes(value)}
        elif _is_foldable(node) and all(arg in values for arg in node.all_input_nodes):
            sizes[node] = {k: v for arg in node.all_input_nodes for k, v in sizes[arg].items()}
            if _bytes(node.meta["val"]) > max(SMALL, GROWTH * sum(sizes[node].values())):
                continue
            same = known.setdefault(repr((node.target, node.args, node.kwargs)), node)
            if same is not node:
                node.replace_all_uses_with(same)
                continue
            values[node] = _computed(node, values)
    return values


def _computed(node: fx.Node, values: Mapping[fx.Node, Any]) -> object:
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda arg: values[arg])
    assert callable(node.target)
    with torch.no_grad():
        return node.target(*args, **kwargs)


def _attribute(graph_module: fx.GraphModule, name: str) -> Tensor | None:
    """Return the tensor of a ``get_attr`` node; graphs of a branch are read in the same way."""
    *path, attribute = name.split(".")
    value = getattr(graph_module.get_submodule(".".join(path)), attribute)
    return value if isinstance(value, Tensor) else None


def _is_foldable(node: fx.Node) -> bool:
    if node.op != "call_function" or node.meta.get("val") is None:
        return False
    if node.target is operator.getitem:
        return True
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or node.is_impure():
        return False
    if target.namespace not in _NAMESPACES or target._schema.is_mutable:
        return False
    if torch.Tag.nondeterministic_seeded in target.tags:
        return False
    # with stored statistics, a normalization in training mode changes them
    stored = op_name(node) in ("batch_norm", "instance_norm") and node.args[3] is not None
    return not (stored and argument(node, 5, "training"))


def _bytes(value: object) -> int:
    if isinstance(value, (list, tuple)):
        return sum(map(_bytes, value))
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def _main_source(node: fx.Node, values: Mapping[fx.Node, object]) -> str | None:
    """Return the name of the largest parameter behind a node."""
    found: dict[str, int] = {}
    pending = [node]
    while pending:
        current = pending.pop()
        if current.op == "get_attr":
            found[str(current.target)] = _bytes(values[current])
        pending.extend(current.all_input_nodes)
    return max(found, key=lambda name: (found[name], name), default=None)


def _weight_name(source: str | None) -> str | None:
    """Return the name of the weight that a parameter is part of: ``weight`` for ``weight_v``."""
    if source is None:
        return None
    parametrized = _PARAMETRIZED.fullmatch(source)
    if parametrized is not None:
        return parametrized["owner"] + parametrized["name"]
    part = _PART.fullmatch(source)
    return source if part is None else part["name"]


def _unused(graph_module: fx.GraphModule, wanted: str) -> str:
    known = {str(node.target) for node in graph_module.graph.find_nodes(op="get_attr")}
    known |= {*graph_module.state_dict(), *(name for name, _ in graph_module.named_modules())}
    name, index = wanted, 1
    while name in known:
        name, index = f"{wanted}_{index}", index + 1
    return name


def _rename(graph_module: fx.GraphModule, constant: fx.Node, wanted: str | None) -> None:
    held = str(constant.target)
    if wanted is None:
        return
    name = _unused(graph_module, wanted)
    path = name.rpartition(".")[0]
    if path and path not in dict(graph_module.named_modules()):
        graph_module.add_submodule(path, nn.Module())
    store(graph_module, name, fetch(graph_module, held))
    delattr(graph_module, held)
    constant.target = name


def _delete_unread(graph_module: fx.GraphModule) -> None:
    """Delete the parameters that no node reads any more: their names become free."""
    read = {str(node.target) for node in graph_module.graph.find_nodes(op="get_attr")}
    names = [name for name, _ in graph_module.named_parameters(remove_duplicate=False)]
    names += [name for name, _ in graph_module.named_buffers(remove_duplicate=False)]
    for name in names:
        if name not in read:
            path, _, attribute = name.rpartition(".")
            delattr(graph_module.get_submodule(path), attribute)
