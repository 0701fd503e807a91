"""Find pickles inside other files and say what they would import. Nothing is run."""

from __future__ import annotations

import io
import re
import tarfile
import zipfile

from edgekit.files.pickle_scan import MalformedPickleError, scan_pickle
from edgekit.files.zip_members import Buffer, ZipMember, member_bytes

_MAX_EMBEDDED = 16 * 2**20  # bytes of one embedded file that are looked through
_NPY_HEADER = re.compile(rb"\x93NUMPY(?P<major>[\x01-\x03]).", re.DOTALL)
_PICKLE_START = re.compile(rb"\x80[\x02-\x05]")
_PICKLE_NAMES = (".pkl", ".pickle", ".pt", ".pth", ".bin")
_TAR_BLOCK = 512


def pickle_imports(content: bytes) -> frozenset[str]:
    """Return the imports of all pickles that follow each other from the start of ``content``.

    What comes after the last complete pickle (raw storages, in torch's old format) is left alone.
    """
    stream = io.BytesIO(content)
    imports: set[str] = set()
    try:
        while stream.tell() < len(content):
            imports |= scan_pickle(stream).imports
    except MalformedPickleError as error:
        imports |= error.imports
    return frozenset(imports)


def npy_imports(content: Buffer) -> frozenset[str]:
    """Return what a NumPy array of Python objects would import; numbers import nothing."""
    found = _NPY_HEADER.match(content)
    if found is None:
        return frozenset()
    width = 2 if found["major"] == b"\x01" else 4
    start = found.end() + width
    length = int.from_bytes(content[found.end() : start], "little")
    return pickle_imports(content[start + length : start + length + _MAX_EMBEDDED])


def zip_imports(members: tuple[ZipMember, ...], data: Buffer, where: str) -> frozenset[str]:
    """Return the imports of all pickles among the stored members of an archive."""
    imports: set[str] = set()
    for member in members:
        if member.stored and 0 < member.size <= _MAX_EMBEDDED:
            imports |= _member_imports(member.name, member_bytes(member, data, where))
    return frozenset(imports)


def _member_imports(name: str, content: bytes) -> frozenset[str]:
    if content.startswith(b"PK\x03\x04"):
        return _nested_zip_imports(content)
    if content.startswith(b"\x93NUMPY"):
        return npy_imports(content)
    if _PICKLE_START.match(content) or name.endswith(_PICKLE_NAMES):
        return pickle_imports(content)
    return frozenset()


def _nested_zip_imports(content: bytes) -> frozenset[str]:
    imports: set[str] = set()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for info in archive.infolist():
                if info.compress_type == zipfile.ZIP_STORED and info.file_size <= len(content):
                    inner = archive.read(info)
                    if _PICKLE_START.match(inner):
                        imports |= pickle_imports(inner)
    except (zipfile.BadZipFile, ValueError, RuntimeError, OSError):
        return frozenset(imports)  # not an archive that anything could open
    return frozenset(imports)


def is_tar(head: bytes) -> bool:
    """Whether ``head`` (at least 512 bytes) is a tar header, of any age: the checksum decides."""
    try:
        tarfile.TarInfo.frombuf(head[:_TAR_BLOCK], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def tar_imports(data: Buffer) -> frozenset[str]:
    """Return the imports of all pickles that start where a tar member can start."""
    imports: set[str] = set()
    for start in range(_TAR_BLOCK, min(len(data), _MAX_EMBEDDED), _TAR_BLOCK):
        if _PICKLE_START.match(data[start : start + 2]):
            imports |= pickle_imports(data[start : start + _MAX_EMBEDDED])
    return frozenset(imports)
