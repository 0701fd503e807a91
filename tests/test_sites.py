"""Sites: on which edges, and that they change nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.capture import CapturedModel, capture
from edgekit.sites import SITE, Role, insert_sites, layer_name, layer_names, weighted_layers
from edgekit.types import InputSpec


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
        self.mix = nn.Conv2d(4, 4, 1, bias=False)
        self.table = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.stem(x))
        x = x + self.mix(x)
        return self.head(x.amax((2, 3)) + self.table(ids)), x.argmax(1)


def network() -> CapturedModel:
    torch.manual_seed(0)
    return capture(Network(), [InputSpec("x", (1, 3, 5, 5)), InputSpec("ids", (1,), "int64")])


def test_every_float_edge_has_one_site() -> None:
    sited = insert_sites(network())
    found = [(site.role.value, site.tensor, site.consumer) for site in sited.sites]
    expected = [
        ("activation", "x", "conv2d"),
        ("weight", "table_weight", "embedding"),
        ("weight", "stem_0_weight", "conv2d"),
        ("bias", "stem_0_bias", "conv2d"),
        ("activation", "conv2d", "relu"),
        ("activation", "relu", "conv2d_1"),
        ("weight", "mix_weight", "conv2d_1"),
        ("activation", "relu", "add"),
        ("activation", "conv2d_1", "add"),
        ("activation", "add", "max_pool2d"),
        ("activation", "max_pool2d", "flatten"),
        ("activation", "flatten", "add_1"),
        ("activation", "embedding", "add_1"),
        ("activation", "add", "argmax"),
        ("weight", "head_weight", "linear"),
        ("bias", "head_bias", "linear"),
        ("activation", "add_1", "linear"),
        ("output", "linear", "output"),
    ]
    # neither ids nor argmax are floats
    assert sorted(found) == sorted(expected)
    assert [site.index for site in sited.sites] == list(range(len(found)))


def test_sites_change_neither_outputs_nor_the_model() -> None:
    model = network()
    code = model.graph.code
    sited = insert_sites(model)
    inputs = (torch.randn(3, 3, 5, 5), torch.tensor([0, 4, 2]))
    for before, after in zip(model(*inputs), sited.model(*inputs), strict=True):
        assert torch.equal(before, after)
    assert model.graph.code == code
    assert sum(node.target is SITE for node in sited.model.graph.graph.nodes) == len(sited.sites)


def test_nodes_keep_their_names_and_shapes() -> None:
    model = network()
    sited = insert_sites(model)
    for node in model.graph.graph.nodes:
        assert sited.node(node.name).target == node.target
    for site in sited.sites:
        assert sited.node(site.tensor).name == site.tensor
    node = next(n for n in sited.model.graph.graph.nodes if n.target is SITE)
    assert node.meta["val"].shape == node.args[0].meta["val"].shape


def test_layers_are_named_after_their_modules() -> None:
    sited = insert_sites(network())
    names = [layer_name(sited.node(s.consumer)) for s in sited.sites if s.role is Role.WEIGHT]
    assert names == ["stem.0", "mix", "table", "head"]


def test_embeddings_count_as_layers_only_where_asked() -> None:
    sited = insert_sites(network())
    assert list(weighted_layers(sited)) == ["stem.0", "mix", "head"]
    assert weighted_layers(sited, {"embedding"})["table"] == "embedding"


def test_a_table_leaves_the_plain_name_to_the_layer_that_shares_it() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(6, 4)

        def forward(self, ids: Tensor) -> Tensor:
            return self.table(ids) @ self.table.weight.T

    sited = insert_sites(capture(Tied(), [InputSpec("ids", (1, 3), "int64")]))
    names = layer_names(sited)
    assert {sited.sites[index].consumer: name for index, name in names.items()} == {
        "linear": "table",
        "embedding": "table_1",
    }


def test_layer_with_a_weight_out_of_the_input_is_named_after_its_node() -> None:
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 3))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight * x.mean())

    sited = insert_sites(capture(Computed(), [InputSpec("x", (1, 3))]))
    assert not [site for site in sited.sites if site.role is Role.WEIGHT]
    assert layer_name(sited.node("linear")) == "linear"
    assert weighted_layers(sited) == {}, "no weight is stored for it"


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.LSTM(8, 6, num_layers=2, bidirectional=True, batch_first=True)
        self.cell, self.head = nn.GRUCell(12, 5), nn.Linear(5, 4)
        self.mix = nn.Parameter(torch.randn(2, 5, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, _ = self.stack(x)
        state = y.new_zeros(y.shape[0], 5)
        for step in range(2):
            state = self.cell(y[:, step], state)
        return self.head(self.head(state) @ self.head.weight), state[:, None, None] @ self.mix


def test_every_layer_with_weights_is_counted() -> None:
    """Recurrent layers, each of a stack and at each call, and products that are no layer."""
    sited = insert_sites(capture(Recurrent(), [InputSpec("x", (1, 3, 8))]))
    layers = weighted_layers(sited)
    assert set(layers) == {
        "stack.l0",
        "stack.l1",
        "cell",
        "cell_1",
        "head",
        "head_1",
        "head.weight_1",  # the product with the transposed weight
        "mix",
    }
    assert layers["stack.l0"] == layers["stack.l1"] == "lstm"
    numbered = set(layer_names(sited).values())
    assert numbered == {"head", "head_1", "head.weight_1"}


def test_weight_too_large_to_fold_is_counted_and_not_sited() -> None:
    class Broad(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.row = nn.Parameter(torch.randn(1, 600))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.row.expand(600, 600))  # 1.4 MB out of 2.4 kB

    sited = insert_sites(capture(Broad(), [InputSpec("x", (1, 600))]))
    assert weighted_layers(sited) == {"linear": "linear"}
    assert not [site for site in sited.sites if site.role is Role.WEIGHT]


def test_tensor_returned_twice_has_a_site_for_each_output() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y = x * 2
            return y, y, x

    sited = insert_sites(capture(Twice(), [InputSpec("x", (1, 3))]))
    outputs = [site.tensor for site in sited.sites if site.role is Role.OUTPUT]
    assert outputs == ["mul", "mul", "x"]
