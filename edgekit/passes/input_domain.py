"""Ranges of the network's inputs, from what preprocessing can produce."""

from __future__ import annotations

from dataclasses import replace

from edgekit.capture import CapturedModel
from edgekit.quant.statistics import Statistics
from edgekit.signals import input_domain


def with_input_domain(model: CapturedModel, statistics: Statistics) -> Statistics:
    """Return the statistics with exact ranges for inputs whose preprocessing is known.

    A pixel can take no other value, so nothing is estimated and nothing may be cut off.
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
    return replace(statistics, tensors=tensors)
