"""Ranges that the network's inputs fix: what preprocessing can produce, what ids can look up."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from edgekit.capture import CapturedModel
from edgekit.graph import constant, op_name
from edgekit.observe import channel_axis
from edgekit.quant.statistics import MAX_VALUES, Statistics, TensorStatistics
from edgekit.signals import input_domain


def with_input_domain(model: CapturedModel, statistics: Statistics) -> Statistics:
    """Return the statistics with exact ranges for what is known of the inputs.

    An image whose preprocessing is known can take no other value, so nothing is estimated and
    nothing may be cut off. What an embedding looks up is a row of its table, whatever the ids: all
    rows are enumerated, also those that no random id met.
    """
    tensors = dict(statistics.tensors)
    nodes = model.graph.graph.find_nodes(op="placeholder")
    for spec, node in zip(model.inputs, nodes, strict=True):
        domain = input_domain(spec, model.preprocessing)
        if domain is None or node.name not in tensors:
            continue
        tensors[node.name] = replace(
            tensors[node.name],
            minimum=domain[0],
            maximum=domain[1],
            prior=None,
            exact=True,
            rule="preprocessing",
        )
    for node in model.graph.graph.nodes:
        if op_name(node) == "embedding" and node.name in tensors:
            tensors[node.name] = _enumerated(model, node, tensors[node.name])
    return replace(statistics, tensors=tensors)


def _enumerated(
    model: CapturedModel, node: fx.Node, observed: TensorStatistics
) -> TensorStatistics:
    """Return the statistics of all rows of an embedding's table, each met equally often."""
    table = constant(model.graph, node.args[0])
    if table is None or table.dim() != 2 or not table.is_floating_point():
        return observed
    table = table.detach().float().cpu()
    index = torch.arange(table.numel())
    if table.numel() > MAX_VALUES:
        index = torch.randperm(table.numel(), generator=torch.Generator().manual_seed(0))
        index = index[:MAX_VALUES]
    found = replace(
        observed,
        minimum=float(table.min()),
        maximum=float(table.max()),
        values=table.reshape(-1)[index],
        channels=index % len(observed.channel_mean),
        rule=f"id domain: all {table.shape[0]} rows of the table",
    )
    if channel_axis(node) != -1:  # its channels are positions, and any row may stand at each
        return found
    return replace(
        found,
        channel_mean=table.mean(0),
        channel_minimum=table.amin(0),
        channel_maximum=table.amax(0),
    )
