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
# All operators of ATen work in memory, except these, which open a file (a test looks for others).
OPERATORS_ON_FILES = frozenset(("from_file", "save"))


def is_harmless_target(target: str) -> bool:
    """Whether a program may call ``target``, such as ``torch.ops.aten.add.Tensor``."""
    if _ON_SIZES.fullmatch(target) or _WITH_GRAPHS.fullmatch(target):
        return True
    found = _OPERATOR.fullmatch(target)
    if found is None or found["name"] in OPERATORS_ON_FILES:
        return False
    packet = getattr(getattr(torch.ops, found["library"]), found["name"], None)
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        return False
    return isinstance(getattr(packet, found["overload"], None), torch._ops.OpOverload)
