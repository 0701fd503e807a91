"""Bit widths of every weighted layer, from the scheme and the layer's place in the network."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import fx

from edgekit.errors import ConfigError
from edgekit.graph import WEIGHTED, OpKind, activation_nodes, argument, op_kind, weight_argument
from edgekit.sites import layer_name
from edgekit.types import FLOAT_BITS, LayerBits, QuantScheme

_WIDE = 8
_SMALL = 0.03
"""Share of a network's weights, in its smallest layers, that keep 8 bits: 0.4 % of the float size.
By its measured sensitivity they make a third of MobileNetV1's error."""


def allocate(
    graph: fx.Graph,
    scheme: QuantScheme,
    *,
    end_bits: int = _WIDE,
    chosen: Mapping[str, LayerBits] | None = None,
) -> dict[str, LayerBits]:
    """Return the bit widths of each layer by its name.

    Below 8 bits three kinds of layers keep 8: those that read the network's input and those whose
    result is the network's output, unless ``end_bits`` says otherwise, because nothing behind or
    before them absorbs their error; and depthwise convolutions, whose few weights for each channel
    leave rounding nothing to balance and hardly count in the size. For the latter reason so do the
    smallest other layers, as long as only weights are narrow and ``end_bits`` is 8.

    A weight-only scheme also takes in the tables of embeddings, and all convolutions keep 8 bits:
    no runtime unpacks narrower ones as it computes.

    Args:
        graph: the captured graph, with or without sites.
        scheme: widths of all other layers.
        end_bits: widths of the first and last layers.
        chosen: widths of single layers by name; they go before everything else.

    Raises:
        ConfigError: ``chosen`` names a layer that is not there.
    """
    kinds = WEIGHTED | {OpKind.EMBEDDING} if scheme.weight_only else WEIGHTED
    layers = [node for node in graph.nodes if op_kind(node) in kinds]
    ends = {node for node in layers if _is_first(node, graph, kinds) or _is_last(node, kinds)}
    end = LayerBits(max(scheme.weight_bits, end_bits), max(scheme.activation_bits, end_bits))
    wide = LayerBits(max(scheme.weight_bits, _WIDE), max(scheme.activation_bits, _WIDE))
    usual = LayerBits(scheme.weight_bits, scheme.activation_bits)
    bits: dict[str, LayerBits] = {}
    for node in layers:
        if op_kind(node) is OpKind.EMBEDDING:
            given = usual
        elif _is_depthwise(node) or (scheme.weight_only and op_kind(node) is not OpKind.LINEAR):
            given = wide
        else:
            given = end if node in ends else usual
        name = layer_name(node)
        bits[name] = bits.get(name, given).widest(given)  # one layer called in several places
    if scheme.activation_bits == _WIDE and end_bits == _WIDE:
        bits.update(dict.fromkeys(_smallest(layers, bits), wide))
    tables = {layer_name(node) for node in graph.nodes if op_kind(node) is OpKind.EMBEDDING}
    stated = dict(chosen or {})
    unknown = sorted(set(stated) - set(bits) - tables)
    if unknown:
        raise ConfigError(
            f"bit widths for '{unknown[0]}': the network has no such layer",
            f"its layers: {', '.join(list(bits)[:8])}{', ...' if len(bits) > 8 else ''}",
        )
    for name in sorted(tables & set(stated) - set(bits)):
        if stated[name].activation != FLOAT_BITS:
            raise ConfigError(
                f"bit widths for '{name}': an embedding reads no activations to quantize",
                f"give {stated[name].weight} and {FLOAT_BITS}",
            )
    return {**bits, **stated}


def _smallest(layers: Collection[fx.Node], bits: Mapping[str, LayerBits]) -> list[str]:
    """Return the smallest narrow layers that together have no more than a share of all weights."""
    values = {layer_name(node): _values(node) for node in layers}
    room = _SMALL * sum(values.values())
    found = []
    for name in sorted(values, key=lambda name: values[name]):
        room -= values[name] if bits[name].weight < _WIDE else 0
        if room < 0:
            break
        if bits[name].weight < _WIDE:
            found.append(name)
    return found


def _values(layer: fx.Node) -> int:
    weight = weight_argument(layer)
    assert isinstance(weight, fx.Node)
    return int(weight.meta["val"].numel())


def _is_first(layer: fx.Node, graph: fx.Graph, kinds: Collection[OpKind]) -> bool:
    """Whether no other layer stands between the network's inputs and this one."""
    active = set(activation_nodes(graph))
    pending, seen = list(layer.all_input_nodes), set[fx.Node]()
    while pending:
        node = pending.pop()
        if node in seen or node not in active:
            continue
        seen.add(node)
        if op_kind(node) in kinds:
            return False
        pending.extend(node.all_input_nodes)
    return True


def _is_last(layer: fx.Node, kinds: Collection[OpKind]) -> bool:
    """Whether no other layer stands between this one and the network's outputs."""
    pending, seen = list(layer.users), set[fx.Node]()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if op_kind(node) in kinds:
            return False
        pending.extend(node.users)
    return True


def _is_depthwise(layer: fx.Node) -> bool:
    """Whether each output channel reads one input channel of several."""
    if op_kind(layer) is OpKind.LINEAR:
        return False
    groups = argument(layer, 6, "groups", 1)
    channels = layer.args[0].meta["val"].shape[1]  # type: ignore[union-attr]
    return isinstance(groups, int) and groups > 1 and groups == channels
