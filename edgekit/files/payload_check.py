"""Check the raw weights of an exported program: names, places, and sizes against the bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from edgekit.errors import LoadError, UnsafeFileError
from edgekit.files.wording import listing, printable
from edgekit.files.zip_members import Buffer, ZipMember, member_bytes

_PAYLOAD = re.compile(r"(weight|tensor)_\d+")
_ATTRIBUTE = re.compile(r"(?!__)\w[\w\-]*(\.(?!__)\w[\w\-]*)*", re.ASCII)
# Bytes of one element, by the number that the format gives to a type (schema 8).
_ELEMENT_SIZES = {
    **dict.fromkeys((1, 2, 12, 29, 30, 31, 32, 33), 1),
    **dict.fromkeys((3, 6, 13, 28), 2),
    **dict.fromkeys((4, 7, 9, 34), 4),
    **dict.fromkeys((5, 8, 10, 35), 8),
    11: 16,
}
_STRIDED = 7
# A tensor may be larger than its bytes, by repeating them; up to here that is nobody's attack.
_MAX_REPEATED = 1 << 26


def checked_payload(
    kind: str, name: str, members: Mapping[str, ZipMember], data: Buffer, where: str
) -> dict[str, bytes]:
    """Return the files of a program's weights or constants, and their table under a fixed name.

    Args:
        kind: ``weights`` or ``constants``.
        name: the program's name.
        members: the members of the folder, by their names in it.
        data: the archive.
        where: its name, for messages.

    Raises:
        LoadError: the table is damaged, or does not fit the bytes.
        UnsafeFileError: a tensor or an object is stored as a pickle.
    """
    table = f"{name}_{kind}_config.json"
    if table not in members:
        raise LoadError(
            f"{where}: is a torch.export archive without its {kind}",
            "it is damaged or cut off: copy or download it again",
        )
    try:
        config = json.loads(member_bytes(members[table], data, where))["config"]
        _refuse_pickled(config, where)
        entries = {str(key): _entry(str(key), meta, members) for key, meta in config.items()}
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise LoadError(
            f"{where}: the table of the archive's {kind} is damaged ({printable(str(error), 200)})",
            "copy or download the file again",
        ) from error
    files = {
        entry["path_name"]: member_bytes(members[entry["path_name"]], data, where)
        for entry in entries.values()
    }
    files[f"model_{kind}_config.json"] = json.dumps({"config": entries}).encode()
    return files


def _refuse_pickled(config: Mapping[str, Any], where: str) -> None:
    pickled = [key for key, meta in config.items() if meta["use_pickle"]]
    if pickled:
        raise UnsafeFileError(
            f"{where}: is a torch.export archive with pickled objects ({listing(pickled)}), which "
            "torch opens by running them; nothing was run",
            "export a network of plain tensors, or add --trust-pickle if you know and trust who "
            "made the file",
        )


def _entry(key: str, meta: Mapping[str, Any], members: Mapping[str, ZipMember]) -> dict[str, Any]:
    """Return the checked description of one tensor; every other text of the table is left out."""
    path, tensor = str(meta["path_name"]), meta["tensor_meta"]
    if not _ATTRIBUTE.fullmatch(key) or not _PAYLOAD.fullmatch(path) or path not in members:
        raise ValueError(f"'{key}' in '{path}'")
    sizes, strides = (_numbers(tensor[name]) for name in ("sizes", "strides"))
    (offset,) = _numbers([tensor["storage_offset"]])
    element = _ELEMENT_SIZES[tensor["dtype"]]
    elements = members[path].size // element
    count = 1
    for size in sizes:
        count *= size
    if len(sizes) != len(strides) or tensor["layout"] != _STRIDED:
        raise ValueError(f"'{key}' has no plain layout")
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if count and (last >= elements or count > max(elements, _MAX_REPEATED // element)):
        raise ValueError(f"'{key}' needs {max(last + 1, count):,} elements, {elements:,} are there")
    return {
        "path_name": path,
        "is_param": bool(meta["is_param"]),
        "use_pickle": False,
        "tensor_meta": {
            "dtype": tensor["dtype"],
            "sizes": [{"as_int": size} for size in sizes],
            "strides": [{"as_int": stride} for stride in strides],
            "storage_offset": {"as_int": offset},
            "requires_grad": False,
            "device": {"type": "cpu", "index": None},
            "layout": _STRIDED,
        },
    }


def _numbers(values: list[Any]) -> list[int]:
    numbers = [value["as_int"] for value in values]
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise ValueError("sizes that are not numbers")
    return numbers
