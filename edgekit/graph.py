"""What the operators of a captured graph are, for quantization.

The table maps ATen operators, as ``torch.export`` leaves them, to the few kinds that lowering
profiles talk about. Anything not in the table is ``OTHER`` and stays in float.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn


class OpKind(str, enum.Enum):
    """Operator kinds that lowering distinguishes."""

    CONV = "conv"
    CONV_TRANSPOSE = "conv_transpose"
    LINEAR = "linear"
    MATMUL = "matmul"
    ADD = "add"
    MUL = "mul"
    CONCAT = "concat"
    MAX_POOL = "max_pool"
    AVERAGE_POOL = "average_pool"
    GLOBAL_POOL = "global_pool"  # mean over all positions, spatial axes kept with size 1
    RESIZE = "resize"
    CLAMP_ZERO = "clamp_zero"  # relu, relu6 and other clamps whose lower bound is zero
    LAYOUT = "layout"  # moves values without changing them: reshape, transpose, slice
    ZERO_PAD = "zero_pad"
    IDENTITY = "identity"  # dropout in evaluation, contiguous, clone
    BATCH_NORM = "batch_norm"
    RECURRENT = "recurrent layer"
    EMBEDDING = "embedding"
    EMBEDDING_BAG = "embedding bag"
    CONSTANT_PRODUCT = "product with a constant"  # and not a linear layer
    OTHER = "other"


WEIGHTED = frozenset({OpKind.CONV, OpKind.CONV_TRANSPOSE, OpKind.LINEAR})
FLOAT_WEIGHTED = frozenset({OpKind.RECURRENT, OpKind.EMBEDDING_BAG, OpKind.CONSTANT_PRODUCT})
"""Kinds that multiply or sum up stored weights and that no target runs on integers."""

_NAMES: dict[OpKind, str] = {
    OpKind.CONV: "conv1d conv2d conv3d",
    OpKind.CONV_TRANSPOSE: "conv_transpose1d conv_transpose2d conv_transpose3d",
    OpKind.LINEAR: "linear",
    OpKind.MATMUL: "matmul bmm mm",
    OpKind.ADD: "add",
    OpKind.MUL: "mul",
    OpKind.CONCAT: "cat concat",
    OpKind.MAX_POOL: "max_pool1d max_pool2d max_pool3d",
    OpKind.AVERAGE_POOL: "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d",
    OpKind.RESIZE: "upsample_nearest2d upsample_bilinear2d interpolate",
    OpKind.CLAMP_ZERO: "relu relu6",
    OpKind.LAYOUT: "view reshape flatten unflatten permute transpose squeeze unsqueeze slice "
    "select expand chunk split t movedim pixel_shuffle pixel_unshuffle channel_shuffle",
    OpKind.IDENTITY: "dropout feature_dropout contiguous clone alias detach",
    OpKind.BATCH_NORM: "batch_norm",
    OpKind.RECURRENT: "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell",
    OpKind.EMBEDDING: "embedding",
    OpKind.EMBEDDING_BAG: "embedding_bag",
}
_KINDS = {name: kind for kind, names in _NAMES.items() for name in names.split()}
_PRODUCTS = frozenset(
    "matmul bmm mm mv einsum baddbmm addbmm addmm addmv bilinear convolution conv_tbc".split()  # noqa: SIM905 - a table like the one above
)


def op_name(node: fx.Node) -> str:
    """Return the operator's name without namespace and overload, or ``""``."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return ""
    return target._schema.name.split("::")[1]


def op_kind(node: fx.Node) -> OpKind:
    """Classify one node of a captured graph."""
    name = op_name(node)
    if name in ("hardtanh", "clamp", "clamp_min"):
        return OpKind.CLAMP_ZERO if clamp_bounds(node)[0] == 0 else OpKind.OTHER
    if name in ("pad", "constant_pad_nd"):
        return OpKind.ZERO_PAD if _pads_with_zero(node) else OpKind.OTHER
    if name in ("mean", "adaptive_avg_pool1d", "adaptive_avg_pool2d") and _pools_everything(node):
        return OpKind.GLOBAL_POOL
    if name in _PRODUCTS and any(arg.op == "get_attr" for arg in node.all_input_nodes):
        return OpKind.CONSTANT_PRODUCT
    if name in ("add", "mul") and not all(isinstance(a, fx.Node) for a in node.args[:2]):
        return OpKind.OTHER  # a sum or product with a number
    return _KINDS.get(name, OpKind.OTHER)


def clamp_bounds(node: fx.Node) -> tuple[float | None, float | None]:
    """Return the lower and upper bound that a clamp-like node applies."""
    name = op_name(node)
    if name == "relu":
        return 0.0, None
    if name == "relu6":
        return 0.0, 6.0
    low: object
    high: object
    if name == "hardtanh":
        low, high = argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0)
    else:
        low = argument(node, 1, "min")
        high = None if name == "clamp_min" else argument(node, 2, "max")
    return _number(low), _number(high)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def argument(node: fx.Node, position: int, keyword: str, default: object = None) -> object:
    """Return a node's argument whether it was passed by position or by keyword."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(keyword, default)


def _pads_with_zero(node: fx.Node) -> bool:
    if op_name(node) == "pad" and argument(node, 2, "mode", "constant") != "constant":
        return False
    value = argument(node, 3 if op_name(node) == "pad" else 2, "value")
    return value is None or value == 0


def _pools_everything(node: fx.Node) -> bool:
    """Whether ``[N, C, *space]`` becomes ``[N, C, 1...]``."""
    source = node.args[0]
    if not isinstance(source, fx.Node) or "val" not in source.meta or "val" not in node.meta:
        return False
    before, after = source.meta["val"].shape, node.meta["val"].shape
    if len(before) != len(after) or len(before) < 3 or any(size != 1 for size in after[2:]):
        return False
    if op_name(node) != "mean":
        return True
    axes = argument(node, 1, "dim")
    return isinstance(axes, (list, tuple)) and sorted(a % len(before) for a in axes) == list(
        range(2, len(before))
    )


def is_float_tensor(node: fx.Node) -> bool:
    """Whether the node's value is a single floating-point tensor."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype.is_floating_point


def activation_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Nodes whose value depends on a network input."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(arg in found for arg in node.all_input_nodes):
            found.add(node)
    return found


def fetch(module: nn.Module, name: str) -> Tensor:
    """Return the parameter or buffer that a ``get_attr`` node names."""
    *path, attribute = name.split(".")
    owner = module.get_submodule(".".join(path))
    value = getattr(owner, attribute)
    assert isinstance(value, Tensor)
    return value


def store(module: nn.Module, name: str, value: Tensor) -> None:
    """Replace the parameter ``name`` by a new, frozen one."""
    *path, attribute = name.split(".")
    owner = module.get_submodule(".".join(path))
    if attribute in owner._buffers:
        owner._buffers[attribute] = value
        return
    setattr(owner, attribute, nn.Parameter(value, requires_grad=False))


def constant(graph_module: fx.GraphModule, node: object) -> Tensor | None:
    """Return the tensor behind a ``get_attr`` node, or ``None`` for anything else."""
    if isinstance(node, fx.Node) and node.op == "get_attr":
        return fetch(graph_module, str(node.target))
    return None


def weight_argument(node: fx.Node) -> fx.node.Argument:
    """Return the argument that holds the weight of a convolution, linear layer or embedding."""
    return node.args[0 if op_kind(node) is OpKind.EMBEDDING else 1]


def stored_weights(node: fx.Node) -> list[fx.Node]:
    """Return the parameters of at least two axes that an operator reads itself."""
    return [
        arg
        for arg in node.all_input_nodes
        if arg.op == "get_attr" and is_float_tensor(arg) and arg.meta["val"].dim() >= 2
    ]


def schema_argument(node: fx.Node, name: str) -> object:
    """Return an argument by the name that the operator's schema gives it."""
    assert isinstance(node.target, torch._ops.OpOverload)
    for position, stated in enumerate(node.target._schema.arguments):
        if stated.name == name:
            return argument(node, position, name, stated.default_value)
    return None


def foldable_layer(graph_module: fx.GraphModule, norm: fx.Node) -> fx.Node | None:
    """Return the layer that a BatchNorm can be folded into, or ``None``.

    That is a convolution, transposed convolution or linear layer that nothing else reads and whose
    weight is a parameter.
    """
    if op_kind(norm) is not OpKind.BATCH_NORM or argument(norm, 5, "training"):
        return None
    layer = norm.args[0]
    if not isinstance(layer, fx.Node) or op_kind(layer) not in WEIGHTED or len(layer.users) != 1:
        return None
    if (
        constant(graph_module, layer.args[1]) is None
        or constant(graph_module, norm.args[3]) is None
    ):
        return None
    if op_kind(layer) is OpKind.LINEAR and layer.meta["val"].dim() != 2:
        return None  # BatchNorm over axis 1 of [N, T, F] does not act on the features
    return layer


def output_nodes(graph: fx.Graph) -> Iterator[fx.Node]:
    """Yield the nodes that the graph returns, in order."""
    for value in graph.output_node().args[0]:  # type: ignore[union-attr]
        if isinstance(value, fx.Node):
            yield value
