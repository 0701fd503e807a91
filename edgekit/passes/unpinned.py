"""Room for tensors that no stored statistics describe.

Synthesized inputs have the stored statistics in front of every BatchNorm. What lies behind the
last one mixes positions and channels in ways that those do not fix: the mean over all positions of
an image, or a linear layer's result, varies more between real images, each of which shows one
object, than between synthesized ones.
"""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from edgekit.capture import CapturedModel
from edgekit.graph import WEIGHTED, OpKind, op_kind
from edgekit.quant.statistics import Statistics, TensorStatistics

ROOM = 1.4
"""Real pooled features reach 1.2 (ResNet-20) to 1.5 (ResNet-8) times as far as distilled ones."""
_MIXING = WEIGHTED | {OpKind.GLOBAL_POOL, OpKind.AVERAGE_POOL}


def widen_unpinned(model: CapturedModel, statistics: Statistics) -> Statistics:
    """Return the statistics with wider ranges for what mixes behind the last BatchNorm."""
    loose = unpinned(model.graph.graph)
    tensors = {
        name: _widened(tensor) if name in loose else tensor
        for name, tensor in statistics.tensors.items()
    }
    return replace(statistics, tensors=tensors)


def unpinned(graph: fx.Graph) -> set[str]:
    """Return the tensors that mix positions or channels with no BatchNorm behind, and their heirs.

    None, if there is no BatchNorm at all: then nothing was pinned in the first place.
    """
    nodes = list(graph.nodes)
    if not any(op_kind(node) is OpKind.BATCH_NORM for node in nodes):
        return set()
    pinned: set[fx.Node] = set()
    for node in reversed(nodes):
        if any(op_kind(user) is OpKind.BATCH_NORM or user in pinned for user in node.users):
            pinned.add(node)
    loose: set[fx.Node] = set()
    for node in nodes:
        heir = any(source in loose for source in node.all_input_nodes)
        if node not in pinned and (op_kind(node) in _MIXING or heir):
            loose.add(node)
    return {node.name for node in loose}


def _widened(tensor: TensorStatistics) -> TensorStatistics:
    return replace(
        tensor,
        minimum=tensor.minimum * ROOM,
        maximum=tensor.maximum * ROOM,
        margin=ROOM,
        rule=f"{tensor.rule}, widened by {ROOM:g} behind the last BatchNorm",
    )
