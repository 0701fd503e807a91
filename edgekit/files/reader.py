"""Open a file of weights or of a network: nothing in it is run unless the user trusts it."""

from __future__ import annotations

import hashlib
import mmap
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from edgekit.errors import LoadError, UnsafeFileError, require
from edgekit.files import torch_save
from edgekit.files.exported_archive import read_exported
from edgekit.files.foreign import refuse_imports
from edgekit.files.legacy_tar import read_legacy_tar
from edgekit.files.pickle_scan import MalformedPickleError, scan_pickle
from edgekit.files.recognize import FileKind, recognize
from edgekit.files.torchscript_archive import read_torchscript
from edgekit.files.wording import printable

Opener = Callable[[Path, FileKind, str], object]
"""Opens a file that the user trusts, running what it contains: path, kind, name for messages."""


@dataclass(frozen=True, slots=True)
class FileContent:
    """What a file holds.

    ``value`` is plain Python values and tensors on the CPU, a ``torch.export.ExportedProgram`` or
    a ``torch.jit.ScriptModule``. ``trusted`` tells that opening it ran what it contains.
    """

    kind: FileKind
    value: object
    sha256: str
    trusted: bool = False


def read_file(
    path: Path, *, program: str | None = None, open_trusted: Opener | None = None
) -> FileContent:
    """Open ``path``, whatever its name, without running anything in it.

    Args:
        path: the file.
        program: which of several programs in a torch.export archive.
        open_trusted: opens what cannot be opened without running code; ``None`` refuses it.

    Raises:
        LoadError: there is no such file, it cannot be read, is damaged or something else.
        UnsafeFileError: it would run code when opened, and is not trusted.
    """
    where = printable(str(path), 300)
    with _mapped(path, where) as data:
        kind = recognize(data, where)
        sha256 = hashlib.sha256(data).hexdigest()
        try:
            return FileContent(kind, _read(path, data, kind, where, program), sha256)
        except UnsafeFileError:
            if open_trusted is None:
                raise
    return FileContent(kind, open_trusted(path, kind, where), sha256, trusted=True)


def _read(path: Path, data: mmap.mmap, kind: FileKind, where: str, program: str | None) -> object:
    match kind:
        case FileKind.SAFETENSORS:
            return _read_safetensors(path, where)
        case FileKind.EXPORTED_PROGRAM:
            return read_exported(data, where, program)
        case FileKind.TORCHSCRIPT:
            return read_torchscript(data, where)
        case FileKind.TORCH_TAR:
            return read_legacy_tar(data, where)
        case FileKind.PICKLE:
            return _refuse_pickle(data, where)
        case FileKind.TORCH_ZIP:
            torch_save.check_zip(data, where)
        case FileKind.TORCH_LEGACY:
            torch_save.check_legacy(data, where)
    return _read_torch(path, where, kind)


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


def _refuse_pickle(data: mmap.mmap, where: str) -> object:
    data.seek(0)
    try:
        imports = scan_pickle(cast("IO[bytes]", data)).imports
    except MalformedPickleError as error:
        imports = error.imports
    refuse_imports(
        imports,
        "is a bare pickle that",
        where,
        "or load it where it was made and save its weights with torch.save",
    )
    raise LoadError(
        f"{where}: is a pickle without tensors",
        "pass the network's state dict, saved with torch.save, with --arch",
    )


def _read_torch(path: Path, where: str, kind: FileKind) -> object:
    # The old format cannot be mapped. Only a path can be, but torch.load takes every path with this
    # ending for safetensors, whatever the file holds.
    mapped = kind is FileKind.TORCH_ZIP and not path.name.endswith(".safetensors")
    with path.open("rb") as file:
        return torch_save.read_weights(path if mapped else file, where, mmap=mapped)


def _read_safetensors(path: Path, where: str) -> object:
    safetensors = require("safetensors.torch", extra="torch")
    errors = (
        *torch_save.READER_ERRORS,
        require("safetensors", extra="torch").SafetensorError,
    )
    try:
        return dict(safetensors.load_file(path))
    except errors as error:
        raise torch_save.unreadable(error, where, "safetensors") from error
