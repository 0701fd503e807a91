"""Open a file of weights: only tensors and plain values come out, and nothing in it is run."""

from __future__ import annotations

import hashlib
import io
import mmap
import pickle
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import torch

from edgekit.errors import LoadError, UnsafeFileError, require
from edgekit.files.pickle_scan import (
    MalformedPickleError,
    PickleScan,
    foreign_imports,
    scan_pickle,
)
from edgekit.files.recognize import FileKind, recognize
from edgekit.files.wording import listing, printable
from edgekit.files.zip_members import check_stored, member_bytes, read_members

# In torch's old format the network's pickle stands behind a magic number, a version and a
# description of the machine, each a pickle of its own, and in front of the list of storages.
_LEGACY_PICKLES = 5
# Whatever damaged bytes provoke inside torch's and safetensors' readers.
_READER_ERRORS = (
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
    struct.error,
)


@dataclass(frozen=True, slots=True)
class FileContent:
    """What a file holds: plain Python values and tensors on the CPU."""

    kind: FileKind
    value: object
    sha256: str


def read_file(path: Path) -> FileContent:
    """Open ``path``, whatever its name, as a container of weights.

    Every pickle in it is read for what it would import before torch sees it, and torch opens it
    with ``weights_only=True``: two locks that do not share code.

    Raises:
        LoadError: there is no such file, it cannot be read, is damaged or something else.
        UnsafeFileError: it would run code when opened.
    """
    where = printable(str(path), 300)
    with _mapped(path, where) as data:
        kind = recognize(data, where)
        sha256 = hashlib.sha256(data).hexdigest()
        if kind is FileKind.TORCH_ZIP:
            _check_torch_zip(data, where)
        elif kind is FileKind.TORCH_LEGACY:
            _check_legacy(data, where)
    if kind is FileKind.SAFETENSORS:
        return FileContent(kind, _read_safetensors(path, where), sha256)
    return FileContent(kind, _read_torch(path, where, kind), sha256)


@contextmanager
def _mapped(path: Path, where: str) -> Iterator[mmap.mmap]:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise LoadError(
                f"{where}: is a directory", "pass the file of weights (.pt, .safetensors) inside it"
            )
        if not stat.S_ISREG(status.st_mode):
            raise LoadError(f"{where}: is not a regular file", "pass a file of weights")
        if status.st_size == 0:
            raise LoadError(f"{where}: is empty", "copy or download the file again")
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise LoadError(f"{where}: there is no such file", "check the path") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LoadError(f"{where}: cannot be read ({reason})", "check its permissions") from error
    with data:
        yield data


def _check_torch_zip(data: mmap.mmap, where: str) -> None:
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
    _check_sizes(_scan(stream, where).storage_elements, len(data), where)


def _check_legacy(data: mmap.mmap, where: str) -> None:
    data.seek(0)
    stream = cast("IO[bytes]", data)
    elements = sum(_scan(stream, where).storage_elements for _ in range(_LEGACY_PICKLES))
    _check_sizes(elements, len(data), where)


def _scan(stream: IO[bytes], where: str) -> PickleScan:
    try:
        scan = scan_pickle(stream)
    except MalformedPickleError as error:
        _refuse_foreign(foreign_imports(error.imports), where)
        raise LoadError(
            f"{where}: is a torch.save file that is damaged or cut off ({printable(str(error))})",
            "copy or download the file again",
        ) from error
    _refuse_foreign(foreign_imports(scan.imports), where)
    return scan


def _refuse_foreign(foreign: tuple[str, ...], where: str) -> None:
    if any(name.startswith("torch.nn.modules.") for name in foreign):
        raise UnsafeFileError(
            f"{where}: holds a whole pickled network, which would import {listing(foreign)}; "
            "nothing was run",
            "if you trust it, save its weights where it was made: "
            "torch.save(torch.load(FILE, weights_only=False).state_dict(), 'weights.pt'), "
            "and pass weights.pt with --arch",
        )
    if foreign:
        raise UnsafeFileError(
            f"{where}: holds more than tensors: opening it would import {listing(foreign)}; "
            "nothing was run",
            "if you trust it, save its state dict alone where it was made: "
            "torch.save(network.state_dict(), 'weights.pt'), and pass weights.pt with --arch",
        )


def _check_sizes(elements: int, file_size: int, where: str) -> None:
    if elements > file_size:
        raise LoadError(
            f"{where}: declares tensors of {elements:,} elements in a file of {file_size:,} bytes",
            "the file is damaged or cut off: copy or download it again",
        )


def _read_torch(path: Path, where: str, kind: FileKind) -> object:
    # The old format cannot be mapped. Only a path can be, but torch.load takes every path with this
    # ending for safetensors, whatever the file holds.
    mapped = kind is FileKind.TORCH_ZIP and not path.name.endswith(".safetensors")
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            # About unusual but harmless files; what is wrong with a file is said by the error.
            warnings.simplefilter("ignore")
            source = path if mapped else file
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except _READER_ERRORS as error:
        raise _damaged(error, where, "torch.save") from error


def _read_safetensors(path: Path, where: str) -> object:
    safetensors = require("safetensors.torch", extra="torch")
    errors = (*_READER_ERRORS, require("safetensors", extra="torch").SafetensorError)
    try:
        return dict(safetensors.load_file(path))
    except errors as error:
        raise _damaged(error, where, "safetensors") from error


def _damaged(error: BaseException, where: str, container: str) -> LoadError:
    first_line = str(error).partition("\n")[0] or type(error).__name__
    return LoadError(
        f"{where}: is a {container} file that cannot be read ({printable(first_line, 200)})",
        "it is damaged, cut off or of an unusual kind: copy or download it again, or save it anew",
    )
