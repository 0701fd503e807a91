"""Bit widths: ends and depthwise layers stay wide, single layers can be chosen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgekit.allocation import allocate
from edgekit.capture import CapturedModel, capture
from edgekit.errors import ConfigError
from edgekit.types import SCHEMES, InputSpec, LayerBits


class Net(nn.Module):
    """Two stems, a depthwise layer between dense ones, and a head behind a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
        self.depthwise, self.dense = nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.Conv2d(8, 8, 1)
        self.up = nn.ConvTranspose2d(8, 8, 2, groups=8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x) + self.side(x))
        return self.head(self.up(self.dense(self.depthwise(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> CapturedModel:
    return capture(Net(), [InputSpec("x", (1, 3, 8, 8))])


WIDE, NARROW = LayerBits(8, 8), LayerBits(4, 8)


def test_ends_and_depthwise_layers_keep_eight_bits(model: CapturedModel) -> None:
    bits = allocate(model.graph.graph, SCHEMES["w4a8"])
    narrow = {name for name, width in bits.items() if width == NARROW}
    assert narrow == {"dense"}
    assert {name for name, width in bits.items() if width == WIDE} == {
        "stem", "side", "depthwise", "up", "head",
    }  # fmt: skip


def test_narrow_ends_and_activations(model: CapturedModel) -> None:
    bits = allocate(model.graph.graph, SCHEMES["w4a4"], end_bits=4)
    assert bits["stem"] == bits["head"] == bits["dense"] == LayerBits(4, 4)
    assert bits["depthwise"] == WIDE


def test_a_chosen_width_goes_before_the_rule(model: CapturedModel) -> None:
    chosen = {"head": LayerBits(4, 8), "dense": LayerBits(6, 8)}
    bits = allocate(model.graph.graph, SCHEMES["w8a8"], chosen=chosen)
    assert bits == {**dict.fromkeys(bits, WIDE), **chosen}


def test_an_unknown_layer_is_named(model: CapturedModel) -> None:
    with pytest.raises(ConfigError, match=r"'heads'.*no such layer") as error:
        allocate(model.graph.graph, SCHEMES["w8a8"], chosen={"heads": WIDE})
    assert "head" in str(error.value.hint)


def test_a_layer_called_twice_has_the_widest_of_its_widths() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.shared = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.shared(torch.relu(self.shared(self.stem(x))))

    graph = capture(Twice(), [InputSpec("x", (1, 4))]).graph.graph
    assert allocate(graph, SCHEMES["w4a8"])["shared"] == WIDE


def test_widths_outside_the_grids_are_refused() -> None:
    with pytest.raises(ConfigError, match="bit widths 1 and 8"):
        LayerBits(1, 8)
    assert LayerBits(4, 16).widest(LayerBits(8, 4)) == LayerBits(8, 16)


class Words(nn.Module):
    """An embedding before linear layers, and a convolution between them."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first, self.inner = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.conv, self.head = nn.Conv1d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.inner(torch.relu(self.first(self.table(ids))))
        return self.head(self.conv(x.transpose(1, 2)).mean(2))


@pytest.fixture(scope="module")
def words() -> CapturedModel:
    return capture(Words(), [InputSpec("ids", (1, 4), "int64")])


def test_weight_only_schemes_narrow_tables_and_linear_layers(words: CapturedModel) -> None:
    """The table stands before the first linear layer, which is therefore no end."""
    bits = allocate(words.graph.graph, SCHEMES["w4a16"])
    narrow, wide = LayerBits(4, 16), LayerBits(8, 16)
    assert bits == {
        "table": narrow, "first": narrow, "inner": narrow, "conv": wide, "head": wide,
    }  # fmt: skip
    assert set(allocate(words.graph.graph, SCHEMES["w8a16"]).values()) == {wide}
    assert allocate(words.graph.graph, SCHEMES["w4a16"], end_bits=4)["head"] == narrow


def test_a_table_is_left_alone_unless_it_is_chosen(words: CapturedModel) -> None:
    assert "table" not in allocate(words.graph.graph, SCHEMES["w8a8"])
    chosen = {"table": LayerBits(4, 16)}
    assert allocate(words.graph.graph, SCHEMES["w8a8"], chosen=chosen)["table"] == chosen["table"]
    with pytest.raises(ConfigError, match="'table': an embedding reads no activations") as error:
        allocate(words.graph.graph, SCHEMES["w8a8"], chosen={"table": LayerBits(4, 8)})
    assert "16" in error.value.hint
