"""Weight-only layers: integer weights in the file, float activations and float arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor, fx

from edgekit.errors import UnsupportedError
from edgekit.graph import WEIGHTED, OpKind, op_kind
from edgekit.quant.affine import WeightCodes, max_scale, quantize_weight
from edgekit.quant.blocks import BLOCKS, block_size, quantize_blocks
from edgekit.quant.weight_scales import mse_scale
from edgekit.sites import SITE, Role, SitedModel, layer_name
from edgekit.types import FLOAT_BITS, LayerBits, QuantScheme


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """What a target does with integer weights of layers that compute in float.

    Attributes:
        per_channel: it takes one scale for each channel, and not blocks alone.
        odd_inputs: why it does not take an odd number of inputs: such layers are stored in 8 bits.
        packed: its kernels unpack weights as they compute; otherwise it unpacks them when it loads
            the file, and only the file is small.
        remark: what else the user should know.
    """

    per_channel: bool = True
    odd_inputs: str = ""
    packed: bool = True
    remark: str = ""


@dataclass(frozen=True, slots=True)
class WeightOnlyRules:
    """A target's weight-only layers, as data.

    Attributes:
        stored: by operator kind and width of the stored integers, 4 or 8; a layer whose codes are
            3 bits wide is stored in 4.
        reasons: why the other kinds stay float.
        math: what such layers compute in.
        keeps_layout: it transposes unpacked weights itself, so that they stay row by row.
    """

    stored: Mapping[tuple[OpKind, int], StoredWeights] = field(default_factory=dict)
    reasons: Mapping[OpKind, str] = field(default_factory=dict)
    math: str = "float32"
    keeps_layout: bool = False


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """One weight-only layer of a target: width of its integers, and what the report says of it."""

    bits: int
    packed: bool
    math: str
    text: str

    @property
    def precision(self) -> str:
        """What a runtime that keeps the weights packed says that it runs."""
        return f"int{self.bits} weights, {self.math} math"

    def keeps(self, precision: str) -> bool:
        """Whether a layer that a runtime reports in ``precision`` reads these packed integers."""
        return precision.startswith(f"int{self.bits} weights")


@dataclass(frozen=True)
class WeightOnlyPlan:
    """What a target does with the layers whose activations stay float.

    ``floating`` names the nodes that read no quantizer, ``stored`` those of them whose weights are
    integers, ``reasons`` tells why the weights of the others stay float.
    """

    floating: frozenset[str]
    stored: Mapping[str, StoredLayer]
    reasons: Mapping[str, str]


def stored_codes(sited: SitedModel, name: str, weight: Tensor, axis: int, bits: int) -> WeightCodes:
    """Round the weight of a weight-only layer.

    Narrow weights of linear layers take blocks along their inputs where a block divides them. A
    table takes one scale for each row, and so does a layer that shares its weight with a table.

    Args:
        sited: the network with its sites.
        name: the layer's name.
        weight: its weight.
        axis: output channels, or rows, of the weight.
        bits: width of the codes.
    """
    if bits == 8:
        return quantize_weight(weight, max_scale(weight, axis, bits), axis, bits)
    readers = (sited.node(site.consumer) for site in sited.sites if site.role is Role.WEIGHT)
    kinds = {op_kind(reader) for reader in readers if layer_name(reader) == name}
    block = block_size(weight.shape[1]) if kinds == {OpKind.LINEAR} else None
    if block is not None:
        return quantize_blocks(weight, bits, block)
    return quantize_weight(weight, mse_scale(weight, axis, bits), axis, bits)


def plan_weight_only(
    sited: SitedModel,
    scheme: QuantScheme,
    bits: Mapping[str, LayerBits],
    codes: Mapping[str, WeightCodes],
    rules: WeightOnlyRules,
    target: str,
) -> WeightOnlyPlan:
    """Decide which layers of a network one target stores as integers and computes in float.

    Args:
        sited: the network with its sites.
        scheme: the scheme; a weight-only one leaves every operator in float.
        bits: widths by layer name.
        codes: integer codes by layer name.
        rules: the target's rules.
        target: its name.

    Raises:
        UnsupportedError: the scheme is weight-only, and the target can store no layer.
    """
    stored: dict[str, StoredLayer] = {}
    reasons: dict[str, str] = {}
    floating = set(_floating(sited, scheme, bits))
    sites = {site.consumer for site in sited.sites if site.role is Role.WEIGHT}
    for name in sorted(floating & sites):
        node = sited.node(name)
        if layer_name(node) not in codes:
            continue
        found = _stored(node, codes[layer_name(node)], rules)
        if isinstance(found, str):
            reasons[name] = found
        else:
            stored[name] = found
    if scheme.weight_only and reasons and not stored:
        name, reason = next(iter(reasons.items()))
        nearest = f"w{scheme.weight_bits}a8"
        raise UnsupportedError(
            f"{scheme.name} changes nothing here on target '{target}': no layer can be stored, "
            f"'{layer_name(sited.node(name))}' first ({reason}); nearest is {nearest}",
            f"use --scheme {nearest}, or other targets with --targets",
        )
    return WeightOnlyPlan(frozenset(floating), stored, reasons)


def _floating(
    sited: SitedModel, scheme: QuantScheme, bits: Mapping[str, LayerBits]
) -> Iterator[str]:
    """Yield operators that no quantizer stands before."""
    layers = {name for name, width in bits.items() if width.activation == FLOAT_BITS}
    for node in sited.model.graph.graph.nodes:
        if node.op != "call_function" or node.target is SITE:
            continue
        kind = op_kind(node)
        if kind is OpKind.EMBEDDING or kind in WEIGHTED:
            if layer_name(node) in layers:
                yield node.name
        elif scheme.weight_only:
            yield node.name


def _stored(node: fx.Node, codes: WeightCodes, rules: WeightOnlyRules) -> StoredLayer | str:
    """Return how a target stores one layer, or why it does not."""
    kind, width = op_kind(node), 4 if codes.bits <= 4 else 8
    rule, why = rules.stored.get((kind, width)), ""
    if rule is not None and rule.odd_inputs and codes.codes.shape[1] % 2:
        width, why = 8, f"; {rule.odd_inputs}"
        rule = rules.stored.get((kind, width))
    if rule is None:
        return rules.reasons.get(kind, f"no kernel takes INT{width} weights of {kind.value}")
    if not rule.per_channel and codes.block is None:
        return f"stays {rules.math}: INT{width} weights need blocks, and {_indivisible(codes)}"
    text = f"{_described(kind, codes, width)}, {rules.math} math{why}"
    return StoredLayer(width, rule.packed, rules.math, text + (rule.remark and f"; {rule.remark}"))


def _described(kind: OpKind, codes: WeightCodes, width: int) -> str:
    if kind is OpKind.EMBEDDING:
        return f"INT{width} table with one scale for each row"
    if codes.block is not None:
        inputs = codes.codes.shape[1]
        why = "" if codes.block == BLOCKS[0] else f", the largest that splits {inputs} inputs"
        return f"INT{width} weights in blocks of {codes.block}{why}"
    why = f" ({_indivisible(codes)})" if kind is OpKind.LINEAR and codes.bits < 8 else ""
    return f"INT{width} weights with one scale for each output channel{why}"


def _indivisible(codes: WeightCodes) -> str:
    inputs = codes.codes.shape[1]
    if block_size(inputs) is not None:
        return "its weight is also an embedding's table, which has one scale for each row"
    return f"no block of {BLOCKS[-1]} or more splits {inputs} inputs"
