"""New nodes of a captured graph, with the value that the rest of the code reads from them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher


def insert(before: fx.Node, target: torch._ops.OpOverload, args: Sequence[Any]) -> fx.Node:
    """Insert ``target(*args)`` before a node whose place it takes in the network.

    The new node knows its (fake) value and the module that ``before`` belongs to.
    """
    graph = before.graph
    with graph.inserting_before(before):
        name = target._schema.name.split("::")[1]
        node = graph.create_node("call_function", target, tuple(args), name=name)
    node.meta.update({key: value for key, value in before.meta.items() if key != "val"})
    known = fx.map_arg(node.args, lambda arg: arg.meta["val"])
    # Without the Python dispatcher some operators take the example's batch for the only one.
    with torch.no_grad(), enable_python_dispatcher():
        node.meta["val"] = target(*known)
    return node


def replace(old: fx.Node, new: fx.Node) -> None:
    """Let ``new`` stand for ``old`` everywhere, and remove ``old``."""
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)


def only_first_read(node: fx.Node) -> bool:
    """Whether of a node with several results nothing but the first is read."""
    return all(user.target is operator.getitem for user in node.users) and not any(
        user.users for user in node.users if user.args[1] != 0
    )


def replace_first(node: fx.Node, new: fx.Node) -> None:
    """Let ``new`` stand for the first result of ``node``, and remove ``node``."""
    for item in list(node.users):
        if item.args[1] == 0:
            item.replace_all_uses_with(new)
        node.graph.erase_node(item)
    node.graph.erase_node(node)
