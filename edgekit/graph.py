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
    OTHER = "other"


WEIGHTED = frozenset({OpKind.CONV, OpKind.CONV_TRANSPOSE, OpKind.LINEAR})

_KINDS: dict[str, OpKind] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), OpKind.CONV),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), OpKind.CONV_TRANSPOSE),
    "linear": OpKind.LINEAR,
    **dict.fromkeys(("matmul", "bmm", "mm"), OpKind.MATMUL),
    "add": OpKind.ADD,
    "mul": OpKind.MUL,
    **dict.fromkeys(("cat", "concat"), OpKind.CONCAT),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), OpKind.MAX_POOL),
    **dict.fromkeys(
        ("avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d"),
        OpKind.AVERAGE_POOL,  # adaptive pooling to size 1 is GLOBAL_POOL
    ),
    **dict.fromkeys(("upsample_nearest2d", "upsample_bilinear2d", "interpolate"), OpKind.RESIZE),
    **dict.fromkeys(("relu", "relu6"), OpKind.CLAMP_ZERO),
    **dict.fromkeys(
        (
            "view", "reshape", "flatten", "unflatten", "permute", "transpose", "squeeze", "unsqueeze",
            "slice", "select", "expand", "chunk", "split", "t", "movedim", "pixel_shuffle",
            "pixel_unshuffle", "channel_shuffle",
        ),
        OpKind.LAYOUT,
    ),
    **dict.fromkeys(("dropout", "dropout_", "feature_dropout", "contiguous", "clone", "alias", "detach"), OpKind.IDENTITY),
    "batch_norm": OpKind.BATCH_NORM,
}  # fmt: skip


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
    bounds = {"hardtanh": (-1.0, 1.0)}.get(name, (None, None))
    given = [argument(node, 1, "min_val" if name == "hardtanh" else "min", bounds[0])]
    given.append(
        None if name == "clamp_min" else argument(node, 2, "max_val" if name == "hardtanh" else "max", bounds[1])
    )
    low, high = (None if isinstance(value, fx.Node) else value for value in given)
    return low, high


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


def output_nodes(graph: fx.Graph) -> Iterator[fx.Node]:
    """Yield the nodes that the graph returns, in order."""
    for value in graph.output_node().args[0]:  # type: ignore[union-attr]
        if isinstance(value, fx.Node):
            yield value
