"""List the members of a zip archive and read them without decompressing anything.

PyTorch stores members uncompressed, so a member is a slice of the file: no size that an archive
declares can ask for more memory than the file has bytes.
"""

from __future__ import annotations

import mmap
import struct
import zipfile
from collections import Counter
from dataclasses import dataclass
from typing import IO, cast

from edgekit.errors import LoadError
from edgekit.files.wording import listing

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, length of the name, length of the extras


@dataclass(frozen=True, slots=True)
class ZipMember:
    """One file in an archive: ``size`` is what it declares to hold once unpacked."""

    name: str
    header_offset: int
    size: int
    stored: bool


def read_members(data: mmap.mmap, where: str) -> tuple[ZipMember, ...]:
    """Read the table of contents.

    Raises:
        LoadError: it is damaged or cut off, or its names or sizes are impossible.
    """
    try:
        with zipfile.ZipFile(cast("IO[bytes]", data)) as archive:
            members = tuple(
                ZipMember(
                    info.filename,
                    info.header_offset,
                    info.file_size,
                    info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1,
                )
                for info in archive.infolist()
            )
    except (zipfile.BadZipFile, struct.error, ValueError, RuntimeError, OSError) as error:
        raise LoadError(
            f"{where}: starts like a zip archive but is damaged or cut off ({error})",
            "copy or download the file again",
        ) from error
    _check_names(members, where)
    return members


def _check_names(members: tuple[ZipMember, ...], where: str) -> None:
    outside = [m.name for m in members if _leaves_archive(m.name)]
    if outside:
        raise LoadError(
            f"{where}: the archive has members that point outside of it: {listing(outside)}",
            "torch.save never writes such names: do not use this file",
        )
    twice = [name for name, count in Counter(m.name for m in members).items() if count > 1]
    if twice:
        raise LoadError(
            f"{where}: the archive has two members of the same name: {listing(twice)}",
            "torch.save never writes such archives: do not use this file",
        )


def _leaves_archive(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return ".." in parts or parts[0] == "" or parts[0].endswith(":")


def check_stored(members: tuple[ZipMember, ...], data: mmap.mmap, where: str) -> None:
    """Refuse an archive that would grow when unpacked.

    Raises:
        LoadError: a member is compressed or encrypted, or the sizes exceed the file.
    """
    declared = sum(member.size for member in members)
    if declared > len(data):
        raise LoadError(
            f"{where}: the archive declares {declared:,} bytes of content in a file of "
            f"{len(data):,} bytes",
            "torch.save stores weights uncompressed, so this file is damaged or made to exhaust "
            "memory; if you compressed it yourself, save it again with torch.save",
        )
    packed = [member.name for member in members if not member.stored]
    if packed:
        raise LoadError(
            f"{where}: members of the archive are compressed or encrypted: {listing(packed)}",
            "torch.save stores weights uncompressed: save them again with torch.save",
        )


def member_bytes(member: ZipMember, data: mmap.mmap, where: str) -> bytes:
    """Return the content of a stored member.

    Raises:
        LoadError: the member does not lie inside the file.
    """
    start = member.header_offset + _LOCAL_HEADER.size
    header = data[member.header_offset : start]
    if len(header) == _LOCAL_HEADER.size:
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        start += name_length + extra_length
        if signature == b"PK\x03\x04" and start + member.size <= len(data):
            return data[start : start + member.size]
    raise LoadError(
        f"{where}: the archive is damaged at its member {listing([member.name])}",
        "copy or download the file again",
    )
