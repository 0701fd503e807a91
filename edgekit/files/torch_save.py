"""Open what ``torch.save`` writes: tensors and plain values, and nothing that runs.

Every pickle is read for what it would import before torch sees it, and torch opens it with
``weights_only=True``: two locks that do not share code.
"""

from __future__ import annotations

import io
import pickle
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import torch
from torch._export.verifier import SpecViolationError

from edgekit.errors import LoadError
from edgekit.files.foreign import refuse_pickled
from edgekit.files.pickle_scan import MalformedPickleError, PickleScan, scan_pickle
from edgekit.files.wording import listing, printable
from edgekit.files.zip_members import (
    Buffer,
    as_stream,
    check_stored,
    member_bytes,
    read_members,
)

# In torch's old format the network's pickle stands behind a magic number, a version and a
# description of the machine, each a pickle of its own, and in front of the list of storages.
_LEGACY_PICKLES = 5
# Whatever damaged bytes provoke inside torch's and safetensors' readers.
READER_ERRORS = (
    RuntimeError,
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    OSError,
    SyntaxError,
    NameError,
    struct.error,
    SpecViolationError,
)


def check_zip(data: Buffer, where: str) -> None:
    """Check an archive that torch.save wrote.

    Raises:
        LoadError: it is damaged, made by something else, or declares absurd sizes.
        UnsafeFileError: it would import more than weights need.
    """
    members = read_members(data, where)
    check_stored(members, data, where)
    roots = {member.name.partition("/")[0] for member in members}
    programs = [m for m in members if m.name.endswith("/data.pkl") and m.name.count("/") == 1]
    if len(roots) != 1 or len(programs) != 1:
        raise LoadError(
            f"{where}: a torch.save archive has one top folder with data.pkl in it; this one has "
            f"{listing(sorted(roots))}",
            "the file is damaged: save it again with torch.save",
        )
    stream = io.BytesIO(member_bytes(programs[0], data, where))
    _check([_scan(stream, where)], len(data), where)


def check_legacy(data: Buffer, where: str) -> None:
    """Check a file in torch's format before 1.6.

    Raises:
        LoadError: it is damaged or declares absurd sizes.
        UnsafeFileError: it would import more than weights need.
    """
    stream = as_stream(data)
    _check([_scan(stream, where) for _ in range(_LEGACY_PICKLES)], len(data), where)


def read_weights(source: Path | IO[bytes], where: str, *, mmap: bool = False) -> object:
    """Return the tensors and plain values of a file that was checked.

    Raises:
        LoadError: torch cannot read it.
    """
    try:
        with warnings.catch_warnings():
            # About unusual but harmless files; what is wrong with a file is said by the error.
            warnings.simplefilter("ignore")
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except READER_ERRORS as error:
        raise unreadable(error, where, "torch.save") from error


def unreadable(error: BaseException, where: str, container: str) -> LoadError:
    """Return the error that tells why torch's or safetensors' own reader gave up."""
    first_line = str(error).partition("\n")[0] or type(error).__name__
    return LoadError(
        f"{where}: is a {container} file that cannot be read ({printable(first_line, 200)})",
        "it is damaged, cut off or of an unusual kind: copy or download it again, or save it anew",
    )


def _scan(stream: IO[bytes], where: str) -> PickleScan:
    try:
        return scan_pickle(stream)
    except MalformedPickleError as error:
        refuse_pickled(error.imports, where)
        raise LoadError(
            f"{where}: is a torch.save file that is damaged or cut off ({printable(str(error))})",
            "copy or download the file again",
        ) from error


def _check(scans: Sequence[PickleScan], size: int, where: str) -> None:
    refuse_pickled([name for scan in scans for name in scan.imports], where)
    elements = sum(scan.storage_elements for scan in scans)
    if elements > size:
        raise LoadError(
            f"{where}: declares tensors of {elements:,} elements in a file of {size:,} bytes",
            "the file is damaged or cut off: copy or download it again",
        )
