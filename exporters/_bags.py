"""Bags of embeddings that ONNX can only express as a loop."""

from __future__ import annotations

from edgekit.errors import UnsupportedError
from edgekit.graph import OpKind, op_kind
from edgekit.sites import SitedModel, layer_name


def refuse_bags(sited: SitedModel, runtime: str) -> None:
    """Stop a target whose runtime cannot run the loop.

    Raises:
        UnsupportedError: the network has a bag that capture could not split.
    """
    for node in sited.model.graph.graph.nodes:
        if op_kind(node) is OpKind.EMBEDDING_BAG:
            raise UnsupportedError(
                f"layer '{layer_name(node)}': a bag of embeddings with offsets of its own, or a "
                f"maximum that skips padding, is a loop in ONNX, which {runtime} does not take",
                "give the ids as a table [N, L], one bag in each row, and no offsets",
            )
