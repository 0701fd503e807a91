"""Which operators a program from a file may call."""

from __future__ import annotations

import re

import torch

_OPERATOR = re.compile(
    r"torch\.ops\.(?P<library>aten|prims|torchvision)\.(?P<name>\w+)\.(?P<overload>\w+)", re.ASCII
)
# On sizes, not on tensors: each of them is a pure function.
_ON_SIZES = re.compile(
    r"_operator\.(add|and_|eq|floordiv|ge|getitem|gt|le|lshift|lt|mod|mul|ne|neg|not_|or_|pos|pow"
    r"|rshift|sub|truediv)"
    r"|math\.(ceil|floor|sqrt|trunc)"
    r"|torch\.(_sym_sqrt|sym_(float|int|ite|max|min|not|sqrt|sum))"
)
# They take a graph that is checked like the outer one.
_WITH_GRAPHS = re.compile(
    r"torch\.ops\.higher_order\.(cond|wrap_with_autocast|wrap_with_set_grad_enabled)"
)
# Operators that open a file; all others of ATen work in memory (a test looks for more).
_ON_FILES = frozenset(("from_file", "save"))
# Operators that trust their indices, with which a file could read and write any memory. Those of
# the first kind have a twin that checks; those of the last are unsafe for gradients alone.
_UNCHECKED = re.compile(r".*unsafe.*")
_CHECKED_TWINS = {
    "torch.ops.aten._unsafe_index.Tensor": "torch.ops.aten.index.Tensor",
    "torch.ops.aten._unsafe_index_put.default": "torch.ops.aten.index_put.default",
}
_CHECKED = re.compile(r"_unsafe_view|unsafe_(chunk|split|split_with_sizes)")


def does_more_than_compute(name: str) -> bool:
    """Whether an operator of this name opens files, or skips the checks of its indices."""
    return name in _ON_FILES or (
        _UNCHECKED.fullmatch(name) is not None and _CHECKED.fullmatch(name) is None
    )


def harmless_target(target: str) -> str | None:
    """Return what a program may call for ``target``, such as ``torch.ops.aten.add.Tensor``.

    Returns:
        The target, or its twin that checks its indices; ``None`` if there is nothing harmless.
    """
    if _ON_SIZES.fullmatch(target) or _WITH_GRAPHS.fullmatch(target):
        return target
    target = _CHECKED_TWINS.get(target, target)
    found = _OPERATOR.fullmatch(target)
    if found is None or does_more_than_compute(found["name"]):
        return None
    packet = getattr(getattr(torch.ops, found["library"]), found["name"], None)
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        return None
    known = isinstance(getattr(packet, found["overload"], None), torch._ops.OpOverload)
    return target if known else None
