"""Sites: the places of a graph where a quantizer may stand.

``edgekit::site(x, index)`` is the identity. It marks an edge, not a tensor: the same tensor may
enter one operator quantized and another one in float.
"""

from __future__ import annotations

import copy
import enum
import functools
from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from edgekit.capture import CapturedModel
from edgekit.graph import (
    FLOAT_WEIGHTED,
    WEIGHTED,
    OpKind,
    activation_nodes,
    argument,
    is_float_tensor,
    op_kind,
    schema_argument,
    stored_weights,
    weight_argument,
)

_LIBRARY = torch.library.Library("edgekit", "DEF")
_LIBRARY.define("site(Tensor x, int index) -> Tensor")
_LIBRARY.impl("site", lambda x, index: x.clone(), "CompositeExplicitAutograd")


def _site_fake(x: Tensor, index: int) -> Tensor:
    del index
    return torch.empty_like(x)


torch.library.register_fake("edgekit::site", _site_fake, lib=_LIBRARY)

SITE = torch.ops.edgekit.site.default


class Role(str, enum.Enum):
    """What flows through a site."""

    ACTIVATION = "activation"
    WEIGHT = "weight"
    BIAS = "bias"
    OUTPUT = "output"


@dataclass(frozen=True, slots=True)
class Site:
    """One place for a quantizer: the value of ``tensor`` on its way into ``consumer``."""

    index: int
    role: Role
    tensor: str
    consumer: str


@dataclass(frozen=True)
class SitedModel:
    """A captured model whose graph carries the sites. Node names are those of the model."""

    model: CapturedModel
    sites: tuple[Site, ...]

    def node(self, name: str) -> fx.Node:
        """Return a node of the graph by name."""
        found: fx.Node = self._nodes[name]
        return found

    @functools.cached_property
    def active(self) -> frozenset[fx.Node]:
        """The nodes whose value depends on a network input."""
        return frozenset(activation_nodes(self.model.graph.graph))

    @functools.cached_property
    def _nodes(self) -> dict[str, fx.Node]:
        return {node.name: node for node in self.model.graph.graph.nodes}


def insert_sites(model: CapturedModel) -> SitedModel:
    """Return a copy of ``model`` with a site on every edge that could be quantized.

    These are all float activations entering an operator or leaving the graph, the weight and bias
    of every convolution, transposed convolution and linear layer, and the table of every embedding.
    """
    graph_module = copy.deepcopy(model.graph)
    graph = graph_module.graph
    active = activation_nodes(graph)
    sites: list[Site] = []

    def wrap(source: fx.Node, user: fx.Node, role: Role) -> fx.Node:
        with graph.inserting_before(user):
            site = graph.call_function(SITE, (source, len(sites)))
        site.meta["val"] = source.meta["val"]
        sites.append(Site(len(sites), role, source.name, user.name))
        return site

    for node in list(graph.nodes):
        if node.op not in ("call_function", "output"):
            continue
        weights = _weight_arguments(node)

        def visit(
            value: fx.node.Argument, node: fx.Node = node, weights: dict[fx.Node, Role] = weights
        ) -> fx.node.Argument:
            if not isinstance(value, fx.Node):
                return value
            if value in weights:
                return wrap(value, node, weights[value])
            if value not in active or not is_float_tensor(value):
                return value
            return wrap(value, node, Role.OUTPUT if node.op == "output" else Role.ACTIVATION)

        node.args = fx.map_arg(node.args, visit)
        node.kwargs = fx.map_arg(node.kwargs, visit)
    graph_module.recompile()
    return SitedModel(replace(model, graph=graph_module), tuple(sites))


def _weight_arguments(node: fx.Node) -> dict[fx.Node, Role]:
    kind = op_kind(node)
    if kind not in WEIGHTED and kind is not OpKind.EMBEDDING:
        return {}
    found: dict[fx.Node, Role] = {}
    bias = argument(node, 2, "bias") if kind in WEIGHTED else None
    for value, role in ((weight_argument(node), Role.WEIGHT), (bias, Role.BIAS)):
        if isinstance(value, fx.Node) and value.op == "get_attr":
            found[value] = role
    return found


def layer_name(node: fx.Node) -> str:
    """Return the name by which users know a weighted layer: its module path."""
    if op_kind(node) in FLOAT_WEIGHTED:
        names = [str(weight.target) for weight in stored_weights(node)]
        if op_kind(node) is OpKind.RECURRENT:  # r.weight_ih_l0, r.weight_hh_l0, ...
            names = [name.rpartition(".")[0] for name in names]
        return names[0].removesuffix(".weight") if names and names[0] else node.name
    weight = weight_argument(node)
    while isinstance(weight, fx.Node) and weight.target is SITE:
        weight = weight.args[0]
    if isinstance(weight, fx.Node) and weight.op == "get_attr":
        return str(weight.target).removesuffix(".weight")
    return node.name


def layer_names(sited: SitedModel) -> dict[int, str]:
    """Return the name of the layer at each weight site; a layer called again gets a number.

    An embedding whose table is also a layer's weight leaves the plain name to that layer.
    """
    weights = [site for site in sited.sites if site.role is Role.WEIGHT]
    tables = [s for s in weights if op_kind(sited.node(s.consumer)) is OpKind.EMBEDDING]
    names: dict[int, str] = {}
    for site in [*(site for site in weights if site not in tables), *tables]:
        names[site.index] = _numbered(layer_name(sited.node(site.consumer)), names.values())
    return names


def weighted_layers(sited: SitedModel, embeddings: Collection[str] = ()) -> dict[str, str]:
    """Return every layer with weights, by name, with the node that computes it.

    These are the layers with a weight site, those whose weight stays computed, and what no target
    runs on integers: recurrent layers (each of a stack by itself), bags of embeddings and products
    with a constant.

    Args:
        sited: the graph with its sites.
        embeddings: nodes of embeddings to count; they multiply nothing, so that they are layers
            only where a scheme stores their tables as integers.
    """
    sites = {
        site.consumer: site.index
        for site in sited.sites
        if site.role is Role.WEIGHT and _counts(sited.node(site.consumer), embeddings)
    }
    names = layer_names(sited)
    found: dict[str, str] = {}
    for node in sited.model.graph.graph.nodes:
        if node.name in sites:
            found[names[sites[node.name]]] = node.name
        elif op_kind(node) in FLOAT_WEIGHTED or has_computed_weight(node, sited.active):
            for name in _stack(node):
                found[_numbered(name, {*found, *names.values()})] = node.name
    return found


def _counts(node: fx.Node, embeddings: Collection[str]) -> bool:
    return op_kind(node) is not OpKind.EMBEDDING or node.name in embeddings


def has_computed_weight(node: fx.Node, active: Collection[fx.Node]) -> bool:
    """Whether a layer's weight is a constant that could not be folded into one tensor."""
    if op_kind(node) in WEIGHTED:
        weight = node.args[1]
        return isinstance(weight, fx.Node) and weight not in active and weight.target is not SITE
    return op_kind(node) is OpKind.MATMUL and any(arg not in active for arg in node.all_input_nodes)


def _stack(node: fx.Node) -> list[str]:
    """Return one name for each layer of a stacked recurrent network, else the layer's own."""
    name = layer_name(node)
    layers = schema_argument(node, "num_layers") if op_kind(node) is OpKind.RECURRENT else None
    if not isinstance(layers, int) or layers == 1:
        return [name]
    return [f"{name}.l{index}" for index in range(layers)]


def _numbered(base: str, taken: Collection[str]) -> str:
    name, calls = base, 0
    while name in taken:
        calls += 1
        name = f"{base}_{calls}"
    return name
