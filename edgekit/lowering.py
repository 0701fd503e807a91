"""Lowering: what each site becomes for one target, decided by that target's profile."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor, fx

from edgekit.graph import FLOAT_WEIGHTED, WEIGHTED, OpKind, op_kind, op_name
from edgekit.quant.affine import QParams, WeightCodes
from edgekit.quant.saturation import Pairing
from edgekit.sites import SITE, SitedModel, has_computed_weight
from edgekit.types import TensorScheme
from edgekit.weight_only import StoredLayer, WeightOnlyRules

TRANSPARENT = frozenset({OpKind.LAYOUT, OpKind.IDENTITY, OpKind.MAX_POOL, OpKind.ZERO_PAD})
"""Kinds that commute with quantization: their output takes the grid of their input."""


@dataclass(frozen=True, slots=True)
class LoweringProfile:
    """The rules of one target, as data.

    Attributes:
        target: name of the target.
        integer_kinds: operator kinds that run on integers when their inputs are quantized.
        quantized_outputs: kinds whose kernels need their result quantized as well.
        unsigned: grid of tensors without negative values.
        signed: grid of the others.
        absorb_clamps: a clamp at zero behind an integer operator is replaced by the range of the
            quantizer that follows.
        fused_sum: a sum of a weighted operator and something else is computed in the former's
            accumulator, so only the other operand is quantized.
        pairing: how the target's kernels sum products in 16 bits.
        float16: what is not integer is computed in FP16; scales are FP16 numbers.
        integer_bias: biases are rounded to int32 in the accumulator's scale.
        packs_int4: codes of at most 4 bits take half a byte in the file, and a cast to INT8 that
            the runtime carries out once, when it loads the file.
        float_reasons: what the target does with kinds that have weights and no integer kernel. A
            kind of ``integer_kinds`` with a reason is quantized, but computed in float.
        weight_only: what it does with weights of layers whose activations stay float.
    """

    target: str
    integer_kinds: frozenset[OpKind]
    quantized_outputs: frozenset[OpKind]
    unsigned: TensorScheme
    signed: TensorScheme
    absorb_clamps: bool
    fused_sum: bool
    pairing: Pairing
    float16: bool = False
    integer_bias: bool = False
    packs_int4: bool = False
    float_reasons: Mapping[OpKind, str] = field(default_factory=dict)
    weight_only: WeightOnlyRules = field(default_factory=WeightOnlyRules)


@dataclass(frozen=True)
class Placement:
    """Which edges of the graph carry a quantizer.

    ``tensors`` maps each quantized tensor to the tensor whose grid it takes; ``edges`` lists the
    indices of activation and output sites that are quantized; ``absorbed`` names clamps that the
    exporter removes; ``integer`` names the operators whose inputs are quantized; ``float_layers``
    gives the reason for every weighted layer that does not run on integers, and ``stored`` tells
    which of these have integer weights.
    """

    tensors: Mapping[str, str]
    edges: frozenset[int]
    absorbed: frozenset[str]
    integer: frozenset[str]
    float_layers: Mapping[str, str] = field(default_factory=dict)
    stored: Mapping[str, StoredLayer] = field(default_factory=dict)


@dataclass(frozen=True)
class LoweredModel:
    """A sited graph with a decision for every site.

    ``activations`` holds the grid of each quantized activation or output site, ``weights`` the
    codes of each quantized weight site, ``biases`` the corrected float bias ``[C_out]`` of each
    bias site, all keyed by site index. ``bias_scales`` ``[C_out]`` is set where the target adds
    the bias as int32. ``at_risk`` counts, by layer, channels that could saturate and all channels.
    """

    profile: LoweringProfile
    sited: SitedModel
    placement: Placement
    activations: Mapping[int, QParams]
    weights: Mapping[int, WeightCodes]
    biases: Mapping[int, Tensor]
    bias_scales: Mapping[int, Tensor] = field(default_factory=dict)
    at_risk: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def stored_layer(self, index: int) -> StoredLayer | None:
        """Return how the layer of a weight site is stored, if it computes in float from codes."""
        return self.placement.stored.get(self.sited.sites[index].consumer)


def place(
    sited: SitedModel,
    profile: LoweringProfile,
    reasons: Mapping[str, str],
    floating: Collection[str] = (),
) -> Placement:
    """Decide which edges are quantized.

    Args:
        sited: the graph with its sites.
        profile: the target's rules.
        reasons: nodes that must stay in float, with the reason (from the exporter's checks).
        floating: further nodes that stay in float, because the scheme says so.
    """
    graph = sited.model.graph.graph
    nodes = [node for node in graph.nodes if node.op == "call_function" and node.target is not SITE]
    computed = {node for node in nodes if has_computed_weight(node, sited.active)}
    integer = {
        node
        for node in nodes
        if op_kind(node) in profile.integer_kinds
        and node.name not in reasons
        and node.name not in floating
        and node not in computed
        and not _makes_scores(node)
    }
    wanted = _wanted_inputs(nodes, integer)
    absorbed = {node for node in nodes if _absorbable(node, profile, integer, wanted)}
    produced = _produced(nodes, integer, absorbed, profile.quantized_outputs)
    edges: set[int] = set()
    tensors: dict[str, str] = {}
    for site in sited.sites:
        node = sited.node(site.consumer)
        source = sited.node(site.tensor)
        if site.role.value not in ("activation", "output") or node in absorbed:
            continue
        if source in produced or node in wanted:
            if op_kind(source) is OpKind.ZERO_PAD and source in wanted:
                continue  # quantized before the padding; zero is exact on every grid
            edges.add(site.index)
    if profile.fused_sum:
        edges |= _fused_sums(sited, nodes, integer)
    for index in edges:
        source = sited.node(sited.sites[index].tensor)
        tensors[source.name] = _grid_owner(source, edges, sited).name
    weighted = computed | {n for n in nodes if op_kind(n) in WEIGHTED | FLOAT_WEIGHTED}
    weighted |= {n for n in nodes if op_kind(n) is OpKind.EMBEDDING and n.name in reasons}
    float_layers = {
        node.name: reasons.get(node.name, _float_reason(node, profile, node in computed))
        for node in nodes
        if node in weighted and (node not in integer or op_kind(node) in profile.float_reasons)
    }
    return Placement(
        tensors, frozenset(edges), frozenset(n.name for n in absorbed),
        frozenset(n.name for n in integer), float_layers,
    )  # fmt: skip


def _makes_scores(node: fx.Node) -> bool:
    """Whether a sum goes to a softmax alone: an integer one would only round what masks widen."""
    readers = _readers(node)
    return (
        op_kind(node) is OpKind.ADD
        and bool(readers)
        and all(op_name(reader) in ("softmax", "_softmax") for reader in readers)
    )


def _float_reason(node: fx.Node, profile: LoweringProfile, computed: bool) -> str:
    if computed:
        return "its weight is computed by the network and cannot be folded into a constant"
    kind = op_kind(node)
    default = f"{profile.target} has no integer kernel for {kind.value}"
    return profile.float_reasons.get(kind, default)


def source_of(node: fx.node.Argument) -> fx.Node | None:
    """Return the tensor behind an argument, looking through a site."""
    if not isinstance(node, fx.Node):
        return None
    if node.target is SITE:
        inner = node.args[0]
        assert isinstance(inner, fx.Node)
        return inner
    return node


def _producer(node: fx.Node) -> fx.Node:
    source = source_of(node.args[0])
    assert source is not None
    return source


def _readers(node: fx.Node) -> list[fx.Node]:
    """Nodes that read a tensor, looking through sites."""
    found: list[fx.Node] = []
    for user in node.users:
        found.extend(user.users if user.target is SITE else [user])
    return found


def _wanted_inputs(nodes: list[fx.Node], integer: set[fx.Node]) -> set[fx.Node]:
    """Integer operators and the transparent ones all of whose readers are integer."""
    wanted = set(integer)
    for node in reversed(nodes):
        readers = _readers(node)
        if op_kind(node) in TRANSPARENT and readers and all(r in wanted for r in readers):
            wanted.add(node)
    return wanted


def _absorbable(
    node: fx.Node, profile: LoweringProfile, integer: set[fx.Node], wanted: set[fx.Node]
) -> bool:
    """Whether a clamp can disappear: alone behind an integer operator, always quantized after."""
    if not profile.absorb_clamps or op_kind(node) is not OpKind.CLAMP_ZERO:
        return False
    producer = _producer(node)
    if producer not in integer or len(_readers(producer)) != 1:
        return False
    return op_kind(producer) in profile.quantized_outputs or all(
        r in wanted for r in _readers(node)
    )


def _produced(
    nodes: list[fx.Node],
    integer: set[fx.Node],
    absorbed: set[fx.Node],
    quantized_outputs: frozenset[OpKind],
) -> set[fx.Node]:
    """Tensors that come quantized out of integer operators, absorbed clamps and what commutes."""
    produced: set[fx.Node] = set()
    for node in nodes:
        kind = op_kind(node)
        commutes = kind in TRANSPARENT and kind is not OpKind.ZERO_PAD
        if (
            node in absorbed
            or (commutes and _producer(node) in produced)
            or (
                node in integer
                and kind in quantized_outputs
                and not any(reader in absorbed for reader in _readers(node))
            )
        ):
            produced.add(node)
    return produced


def _fused_sums(sited: SitedModel, nodes: list[fx.Node], integer: set[fx.Node]) -> set[int]:
    """Sites of the operands that enter a sum beside a weighted operator's accumulator."""
    found: set[int] = set()
    for node in nodes:
        if op_kind(node) is not OpKind.ADD or node in integer:
            continue
        operands = [source_of(arg) for arg in node.args[:2]]
        fused = [
            index
            for index, operand in enumerate(operands)
            if operand is not None
            and operand in integer
            and op_kind(operand) in WEIGHTED
            and len(_readers(operand)) == 1
        ]
        if fused:
            other = node.args[1 - fused[-1]]
            if isinstance(other, fx.Node) and other.target is SITE:
                found.add(int(other.args[1]))  # type: ignore[arg-type]
    return found


def _grid_owner(source: fx.Node, edges: set[int], sited: SitedModel) -> fx.Node:
    """Walk up through transparent operators whose input is quantized: they share its grid."""
    while op_kind(source) in TRANSPARENT:
        argument = source.args[0]
        if not isinstance(argument, fx.Node) or argument.target is not SITE:
            break
        if int(argument.args[1]) not in edges:  # type: ignore[arg-type]
            break
        above = source_of(argument)
        assert above is not None
        source = above
    return source
