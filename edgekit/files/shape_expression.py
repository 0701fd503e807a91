"""Check the arithmetic on sizes that an exported program holds as text.

torch hands such a text to Python's ``eval``. What passes here can name sizes, numbers and the
functions below, and nothing else.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

SYMBOL = re.compile(r"(s|u|z|i|f|zf|zuf)\d{1,6}")
_FUNCTION = re.compile(
    r"Symbol|Integer|Float|Rational|Add|Mul|Pow|Max|Min|Mod|Abs|And|Or|Not|Eq|Ne|Lt|Le|Gt|Ge"
    r"|Equality|Unequality|(Strict)?(Less|Greater)Than|floor|ceiling"
    r"|(Floor|Ceil|Clean|FloatTrue|IntTrue)Div|(Ceil|Floor|Trunc|Round)ToInt|TruncToFloat|ToFloat"
    r"|ModularIndexing|Where|PythonMod|LShift|RShift|PowByNatural|FloatPow|RoundDecimal|Identity"
    r"|IsNonOverlappingAndDenseIndicator"
)
_CONSTANTS = frozenset(("oo", "true", "false"))
_GROWING = frozenset(("Pow", "PowByNatural", "FloatPow", "LShift", "RShift"))
_MAX_LENGTH = 4000
_MAX_POWERS = 4  # so that nesting them cannot make a number that fills the memory
_MAX_EXPONENT = 16
_NODES = (
    ast.Expression,
    ast.Call,
    ast.keyword,
    ast.Name,
    ast.Constant,
    ast.BinOp,
    ast.UnaryOp,
    ast.Compare,
    ast.operator,
    ast.unaryop,
    ast.cmpop,
    ast.expr_context,
)


def is_shape_expression(text: str) -> bool:
    """Whether ``text`` is plain arithmetic on sizes."""
    if len(text) > _MAX_LENGTH:
        return False
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    if not all(isinstance(node, _NODES) for node in nodes):
        return False
    named, strings = _named(nodes), _strings(nodes)
    return (
        all(_is_known(node, named) for node in nodes if isinstance(node, ast.Name))
        and all(isinstance(n.func, ast.Name) for n in nodes if isinstance(n, ast.Call))
        and all(node.arg is not None for node in nodes if isinstance(node, ast.keyword))
        and all(_is_harmless(node, strings) for node in nodes if isinstance(node, ast.Constant))
        and _is_bounded(nodes)
    )


def _named(nodes: list[ast.AST]) -> set[int]:
    """Return the names that stand where a function is called."""
    return {id(node.func) for node in nodes if isinstance(node, ast.Call)}


def _strings(nodes: list[ast.AST]) -> set[int]:
    """Return the constants that may be text: the first argument of Symbol and Float."""
    return {
        id(node.args[0])
        for node in nodes
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("Symbol", "Float")
        and node.args
    }


def _is_known(node: ast.Name, named: set[int]) -> bool:
    if id(node) in named:
        return _FUNCTION.fullmatch(node.id) is not None
    return node.id in _CONSTANTS or SYMBOL.fullmatch(node.id) is not None


def _is_harmless(node: ast.Constant, strings: set[int]) -> bool:
    if isinstance(node.value, str):
        number = re.fullmatch(r"-?[\d.]{1,40}(e[+-]?\d{1,3})?", node.value)
        return id(node) in strings and (SYMBOL.fullmatch(node.value) or number) is not None
    return isinstance(node.value, bool | float) or (
        isinstance(node.value, int) and node.value < 1 << 64
    )


def _is_bounded(nodes: list[ast.AST]) -> bool:
    exponents = list(_exponents(nodes))
    return len(exponents) <= _MAX_POWERS and all(
        _value(exponent) <= _MAX_EXPONENT for exponent in exponents
    )


def _exponents(nodes: list[ast.AST]) -> Iterator[ast.expr | None]:
    for node in nodes:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift):
            yield node.right
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in _GROWING
        ):
            yield node.args[1] if len(node.args) == 2 else None


def _value(node: ast.expr | None) -> float:
    """Return the absolute value of a number, bare or as ``Integer(2)``; infinity otherwise."""
    if isinstance(node, ast.Call) and len(node.args) == 1:
        return _value(node.args[0])
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        return _value(node.operand)
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return abs(node.value)
    return float("inf")
