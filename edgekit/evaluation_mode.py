"""Take a graph that was exported in training mode to evaluation mode."""

from __future__ import annotations

import operator

import torch
from torch import fx

_FLAGS = {"train": False, "training": False, "dropout_p": 0.0}
_STATE = ("running_mean", "running_var", "num_batches_tracked")
_TRAINED_NORM = torch.ops.aten._native_batch_norm_legit_functional.default


def switch_to_evaluation(graph: fx.Graph) -> tuple[str, ...]:
    """Change the graph in place: BatchNorm uses what it has learned, dropout does nothing.

    Returns:
        A note for the user if anything had to be changed.
    """
    changed = [_clear_flags(node) for node in graph.nodes]
    for node in graph.find_nodes(op="call_function", target=_TRAINED_NORM):
        _use_learned_statistics(graph, node)
    for node in list(graph.nodes):
        if _updates_statistics(node):
            graph.erase_node(node)
    if not any(changed):
        return ()
    return (
        "the program was exported in training mode: BatchNorm and dropout were switched to "
        "evaluation (export after network.eval() to be sure)",
    )


def _clear_flags(node: fx.Node) -> bool:
    """Set the arguments that ask an operator for training; tell whether one was set.

    A normalization without learned statistics always computes its own, in evaluation mode, too.
    """
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    given = _arguments(node)
    if "norm" in node.target._schema.name and given.get("running_mean") is None:
        return False
    changed = False
    for place, parameter in enumerate(node.target._schema.arguments):
        cleared = _FLAGS.get(parameter.name)
        if cleared is None or given.get(parameter.name, cleared) == cleared:
            continue
        changed = True
        if parameter.name in node.kwargs:
            node.update_kwarg(parameter.name, cleared)
        else:
            node.update_arg(place, cleared)
    return changed


def _arguments(node: fx.Node) -> dict[str, object]:
    """Return what is given to an operator, by the names of its parameters."""
    assert isinstance(node.target, torch._ops.OpOverload)
    names = (parameter.name for parameter in node.target._schema.arguments)
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _use_learned_statistics(graph: fx.Graph, node: fx.Node) -> None:
    """Replace the decomposed BatchNorm, which also returns new statistics, by the plain one."""
    *tensors, _training, momentum, epsilon = node.args
    with graph.inserting_before(node):
        norm = graph.call_function(
            torch.ops.aten.batch_norm.default, (*tensors, False, momentum, epsilon, False)
        )
    norm.meta["val"] = node.meta["val"][0] if "val" in node.meta else None
    for item in list(node.users):
        if item.target is operator.getitem and item.args[1] == 0:
            item.replace_all_uses_with(norm)
    for item in [item for item in node.users if item.users]:
        for update in list(item.users):  # writes of the new statistics
            graph.erase_node(update)


def _updates_statistics(node: fx.Node) -> bool:
    """Whether the node writes a statistic of BatchNorm, and nothing reads what it returns."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    written = node.args[0] if node.args else None
    return (
        node.target._schema.is_mutable
        and not node.users
        and isinstance(written, fx.Node)
        and written.op == "get_attr"
        and str(written.target).rpartition(".")[2] in _STATE
    )
