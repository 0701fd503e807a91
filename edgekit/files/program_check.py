"""Check the text of an exported program, from which torch would otherwise run anything.

torch resolves operators by dotted name (``torch.os.system`` would do), hands sizes and guards to
``eval``, imports classes that a calling convention names, and writes names into Python source that
it executes. So every text in the program is denied unless its place is known and its form is
harmless; numbers and structure cannot do damage.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.errors import LoadError, UnsafeFileError
from edgekit.files.operators import harmless_target
from edgekit.files.shape_expression import SYMBOL, is_shape_expression
from edgekit.files.wording import printable

_NAME = re.compile(r"[A-Za-z_]\w{0,500}", re.ASCII)
_ATTRIBUTE = re.compile(r"(?!__)\w[\w\-]*(\.(?!__)\w[\w\-]*)*", re.ASCII)
_NAMES = ("name", "as_name", "user_input_name")
_ATTRIBUTES = ("parameter_name", "buffer_name", "tensor_constant_name")
_TARGETS = ("target", "as_operator")
_TEXTS = ("as_string", "as_strings")  # arguments of operators: torch writes them as literals
_NUMBERS = ("as_float", "as_floats", "real", "imag")
_SPECIAL_NUMBERS = ("Infinity", "-Infinity", "NaN")
_DIALECTS = ("ATEN", "TRAINING", "")
_CUSTOM = ("as_custom_obj", "custom_obj")
# Dictionaries whose keys the file chooses.
_NAMED_VALUES = (
    "tensor_values",
    "sym_int_values",
    "sym_bool_values",
    "sym_float_values",
    "as_string_to_argument",
)

# What a program of another structure than the expected one provokes while it is walked through.
_SHAPE_ERRORS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)


def checked_program(text: bytes, where: str) -> bytes:
    """Return the program with what is not needed left out and all devices set to the CPU.

    Raises:
        LoadError: it is not a program in a form that this torch knows.
        UnsafeFileError: it asks for something that could run code.
    """
    try:
        program = json.loads(text)
        return json.dumps(_Check(where).program(program)).encode()
    except UnsafeFileError:
        raise
    except (*_SHAPE_ERRORS, RecursionError) as error:
        raise LoadError(
            f"{where}: is a torch.export archive whose program cannot be read "
            f"({type(error).__name__}: {printable(str(error), 200)})",
            "it is damaged, or from another version of PyTorch: export the network again",
        ) from error


@dataclass(frozen=True, slots=True)
class _Check:
    where: str

    def program(self, program: Mapping[str, Any]) -> dict[str, Any]:
        module = program["graph_module"]
        return {
            "graph_module": {
                "graph": self.value(module["graph"], "graph"),
                "signature": self.value(module["signature"], "signature"),
                "module_call_graph": [self.call(module["module_call_graph"][0])],
                "metadata": {},
            },
            "opset_version": {"aten": int(program["opset_version"]["aten"])},
            "range_constraints": self.ranges(program["range_constraints"]),
            "schema_version": {
                key: int(program["schema_version"][key]) for key in ("major", "minor")
            },
            "verifiers": [
                self.one_of(name, _DIALECTS, "verifiers") for name in program.get("verifiers", [])
            ],
            "guards_code": [],  # Python that torch would execute; edgekit checks inputs itself
        }

    def value(self, value: Any, key: str) -> Any:
        """Return a checked copy of any value; ``key`` is the nearest key above it."""
        if isinstance(value, dict):
            return self.mapping(value, key)
        if isinstance(value, list):
            return [self.value(item, key) for item in value]
        if isinstance(value, str):
            return self.text(value, key)
        return value

    def mapping(self, value: dict[str, Any], key: str) -> dict[str, Any]:
        if key in ("device", "as_device"):
            return {"type": "cpu", "index": None}
        checked = {}
        for inner, item in value.items():
            if key in _NAMED_VALUES:
                self.need(_NAME.fullmatch(inner), f"a value named '{inner}'")
            self.need(inner not in _CUSTOM, "an object of a class of its own")
            checked[inner] = {} if inner == "metadata" else self.value(item, inner)
        return checked

    def text(self, text: str, key: str) -> str:
        if key in _NAMES:
            allowed: object = text == "" or _NAME.fullmatch(text)
        elif key in _ATTRIBUTES:
            allowed = _ATTRIBUTE.fullmatch(text)
        elif key in _TARGETS:
            allowed = harmless_target(text)
        elif key == "expr_str":
            allowed = is_shape_expression(text)
        elif key in _NUMBERS:
            allowed = text in _SPECIAL_NUMBERS
        else:
            allowed = key in _TEXTS
        self.need(allowed, f"'{printable(text)}' as its {printable(key, 40)}")
        return allowed if key in _TARGETS and isinstance(allowed, str) else text

    def need(self, allowed: object, what: str) -> None:
        if not allowed:
            raise UnsafeFileError(
                f"{self.where}: is a torch.export archive whose program has "
                f"{printable(what, 200)}, which edgekit does not accept from a file; nothing was "
                "run",
                "torch would run or import it; if you know and trust who made the file, add "
                "--trust-pickle",
            )

    def one_of(self, text: str, known: tuple[str, ...], key: str) -> str:
        self.need(text in known, f"'{text}' as its {key}")
        return text

    def ranges(self, ranges: Mapping[str, Any]) -> dict[str, Any]:
        """Keep the limits of single sizes; those of sums and products follow from them."""
        return {
            symbol: {key: limit if isinstance(limit, int) else None for key, limit in value.items()}
            for symbol, value in ranges.items()
            if SYMBOL.fullmatch(symbol)
        }

    def call(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Return how the program is called; the entries of its submodules are not needed."""
        signature = entry["signature"]
        return {
            "fqn": "",
            "signature": {
                "inputs": [],
                "outputs": [],
                "in_spec": _convention(signature["in_spec"], _plain_call),
                "out_spec": _convention(signature["out_spec"], _plain),
                "forward_arg_names": None,
            },
        }


def _convention(text: str, rewrite: Callable[[Mapping[str, Any]], dict[str, Any]]) -> str:
    """Return a calling convention that names no class of its own."""
    version, spec = json.loads(text)
    return json.dumps([int(version), rewrite(spec)])


def _node(kind: str | None, context: str | None, children: list[Any]) -> dict[str, Any]:
    return {"type": kind, "context": context, "children_spec": children}


_LEAF = _node(None, None, [])


def _plain(spec: Mapping[str, Any]) -> dict[str, Any]:
    kind, context = spec["type"], spec["context"]
    children = [_plain(child) for child in spec["children_spec"]]
    if kind is None:
        return _LEAF
    if kind in ("builtins.tuple", "builtins.list"):
        return _node(kind, "null", children)
    if kind in ("builtins.dict", "collections.OrderedDict"):
        keys = json.loads(context)
        if isinstance(keys, list) and all(isinstance(key, str | int) for key in keys):
            return _node(kind, json.dumps(keys), children)
    return _node("builtins.tuple", "null", children)


def _plain_call(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the convention of a call: a tuple of positional and a dictionary of other inputs."""
    plain = _plain(spec)
    kinds = [child["type"] for child in plain["children_spec"]]
    if plain["type"] == "builtins.tuple" and kinds == ["builtins.tuple", "builtins.dict"]:
        return plain
    positional = _node("builtins.tuple", "null", [_LEAF] * _count(plain))
    return _node("builtins.tuple", "null", [positional, _node("builtins.dict", "[]", [])])


def _count(spec: Mapping[str, Any]) -> int:
    if spec["type"] is None:
        return 1
    return sum(_count(child) for child in spec["children_spec"])
