"""Say what a pickle would import, by reading its instructions and running none of them."""

from __future__ import annotations

import pickletools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO

_MAX_INSTRUCTIONS = 5_000_000  # about 50,000 tensors need this many; more is an attempt to stall us
_MARK = object()
_OPAQUE = object()  # a value whose content does not matter here

# What `torch.save` writes for a dict of plain tensors. torch's own list for `weights_only=True`
# is longer; what it has beyond this never occurs in weights that can be quantized.
_WEIGHT_IMPORTS = frozenset(
    {
        "collections.OrderedDict",
        "torch.Size",
        "torch.Tensor",
        "torch.device",
        "torch.nn.parameter.Buffer",
        "torch.nn.parameter.Parameter",
        "torch.per_channel_affine",
        "torch.per_tensor_affine",
        "torch.serialization._get_layout",
        "torch.storage.TypedStorage",
        "torch.storage.UntypedStorage",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_qtensor",
        "torch._utils._rebuild_sparse_tensor",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
    }
)
_WEIGHT_TYPES = re.compile(
    r"torch\.(bool|(bfloat|bits|complex|float|int|qint|quint|uint)\d+(x\d|_\w+)?)"
    r"|torch\.(cuda\.)?[A-Za-z0-9]+Storage"
)
_SPEAKING_CONSTANTS = ("UNICODE", "STRING", "INT", "LONG")  # parts of instruction names


_PLAIN_NAME = re.compile(r"[\w.<>]+")


class MalformedPickleError(ValueError):
    """The bytes are not a complete pickle.

    ``imports`` are those in front of the damage: a real unpickler would have made them.
    """

    def __init__(self, message: str, imports: frozenset[str]) -> None:
        super().__init__(message)
        # Numbers that only look like a pickle produce names that nobody could import.
        self.imports = frozenset(name for name in imports if _PLAIN_NAME.fullmatch(name))


@dataclass(frozen=True, slots=True)
class PickleScan:
    """What one or several pickles ask for.

    ``imports`` are dotted names. ``storage_elements`` is the number of tensor elements that the
    pickle says its storages hold.
    """

    imports: frozenset[str]
    storage_elements: int = 0

    @property
    def foreign(self) -> tuple[str, ...]:
        """Imports that weights do not need, the suspicious ones (not of torch) first."""
        return foreign_imports(self.imports)


def foreign_imports(imports: Iterable[str]) -> tuple[str, ...]:
    """Leave out of ``imports`` what a file of plain weights needs."""
    foreign = [name for name in imports if not _weights_need(name)]
    return tuple(sorted(foreign, key=lambda name: (name.startswith("torch."), name)))


def _weights_need(name: str) -> bool:
    return name in _WEIGHT_IMPORTS or _WEIGHT_TYPES.fullmatch(name) is not None


def scan_pickle(stream: IO[bytes]) -> PickleScan:
    """Read one pickle up to its end and leave ``stream`` behind it.

    Raises:
        MalformedPickleError: the pickle is damaged, cut off or absurdly long.
    """
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > _MAX_INSTRUCTIONS:
                raise ValueError(f"more than {_MAX_INSTRUCTIONS:,} instructions")
            machine.step(opcode, argument)
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
        raise MalformedPickleError(str(error), frozenset(machine.imports)) from error
    return PickleScan(frozenset(machine.imports), sum(machine.storages.values()))


class _Machine:
    """A pickle machine on which only strings, integers and tuples have a value.

    That is enough to name what is imported (``STACK_GLOBAL`` takes its names from the stack) and
    to see the sizes in the references to tensor storages.
    """

    def __init__(self) -> None:
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}
        self.imports: set[str] = set()
        self.storages: dict[object, int] = {}

    def step(self, opcode: pickletools.OpcodeInfo, argument: object) -> None:
        """Follow one instruction."""
        name = opcode.name
        if name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name.endswith("PUT") and isinstance(argument, int):
            self.memo[argument] = self.stack[-1]
        elif name.endswith("GET") and isinstance(argument, int):
            self.stack.append(self.memo[argument])
        elif name == "MARK":
            self.stack.append(_MARK)
        elif name == "DUP":
            self.stack.append(self.stack[-1])
        else:
            operands = self._pop_operands(opcode)
            self._note(name, argument, operands)
            self.stack.extend(_result(name, argument, operands) for _ in opcode.stack_after)

    def _pop_operands(self, opcode: pickletools.OpcodeInfo) -> tuple[object, ...]:
        before = opcode.stack_before
        operands: list[object] = []
        single = len(before)
        if pickletools.markobject in before:
            single = before.index(pickletools.markobject)
            while (value := self.stack.pop()) is not _MARK:
                operands.append(value)
        operands.extend(self.stack.pop() for _ in range(single))
        return tuple(reversed(operands))

    def _note(self, name: str, argument: object, operands: tuple[object, ...]) -> None:
        if name in ("GLOBAL", "INST"):
            self.imports.add(str(argument).replace(" ", ".", 1))
        elif name == "STACK_GLOBAL":
            known = all(isinstance(part, str) for part in operands)
            self.imports.add(".".join(map(str, operands)) if known else "a name made at run time")
        elif name.startswith("EXT"):
            self.imports.add(f"copyreg extension {argument}")
        elif name == "BINPERSID":
            self._note_storage(operands[0])

    def _note_storage(self, reference: object) -> None:
        # torch writes ("storage", type, key, location, number of elements, ...).
        if isinstance(reference, tuple) and len(reference) >= 5:
            key, elements = reference[2], reference[4]
            if isinstance(key, str | int) and isinstance(elements, int):
                self.storages[key] = max(elements, self.storages.get(key, 0))


def _result(name: str, argument: object, operands: tuple[object, ...]) -> object:
    if name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE"):
        return operands
    if isinstance(argument, str | int) and any(part in name for part in _SPEAKING_CONSTANTS):
        return argument
    return _OPAQUE
