"""Which tensors no stored statistics describe, and what becomes of their ranges."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.calibration.noise import GaussianNoise
from edgekit.capture import capture
from edgekit.graph import OpKind, op_kind
from edgekit.passes.unpinned import ROOM, unpinned, widen_unpinned
from edgekit.types import InputSpec

IMAGE = [InputSpec("x", (1, 3, 8, 8))]


class Tail(nn.Module):
    """Behind the last BatchNorm: an activation, a pooling, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.hidden, self.head = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(F.avg_pool2d(x, 2))))
        return self.head(F.relu(self.hidden(x.mean((2, 3)))))


def test_what_mixes_behind_the_last_norm_and_its_heirs() -> None:
    graph = capture(Tail().eval(), IMAGE).graph.graph
    loose = unpinned(graph)
    kinds = {node.name: op_kind(node) for node in graph.nodes}
    pool = next(name for name, kind in kinds.items() if kind is OpKind.GLOBAL_POOL)
    order = [node.name for node in graph.nodes if node.op == "call_function"]
    # from the pooling on everything; before it nothing, not even the pooling of the input
    assert loose & set(order) == set(order[order.index(pool) :])
    assert kinds[order[order.index(pool) - 1]] is not OpKind.BATCH_NORM  # the ReLU stays pinned


def test_nothing_in_a_network_without_batch_norm() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert unpinned(capture(module, IMAGE).graph.graph) == set()


class Branches(nn.Module):
    """One branch is read by a BatchNorm, the other is not."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.left(x)) + torch.sigmoid(self.right(x))


def test_branch_without_norm_is_loose_and_so_is_the_sum() -> None:
    graph = capture(Branches().eval(), IMAGE).graph.graph
    layers = [node for node in graph.nodes if op_kind(node) is OpKind.CONV]
    loose = unpinned(graph)
    assert [node.name in loose for node in layers] == [False, True]
    (norm,) = (node for node in graph.nodes if op_kind(node) is OpKind.BATCH_NORM)
    assert norm.name not in loose
    assert {node.name for node in layers[1].users} <= loose
    assert {node.name for node in norm.users} - {"output"} <= loose


def test_only_loose_ranges_are_widened() -> None:
    torch.manual_seed(0)
    model = capture(Tail().eval(), IMAGE)
    before = GaussianNoise(samples=8).observe(model)
    after = widen_unpinned(model, before)
    loose = unpinned(model.graph.graph)
    assert set(after.tensors) == set(before.tensors)
    assert loose & set(before.tensors)
    assert set(before.tensors) - loose
    for name, tensor in before.tensors.items():
        found = after.tensors[name]
        if name not in loose:
            assert found is tensor
            continue
        assert found.minimum == pytest.approx(ROOM * tensor.minimum)
        assert found.maximum == pytest.approx(ROOM * tensor.maximum)
        assert found.margin == ROOM
        assert found.rule == f"noise, widened by {ROOM:g} behind the last BatchNorm"
        assert found.values is tensor.values
