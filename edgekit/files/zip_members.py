"""List the members of a zip archive and read them.

PyTorch stores what is large uncompressed, so a member is a slice of the file: no size that an
archive declares can ask for more memory than the file has bytes.
"""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, cast

from edgekit.errors import LoadError
from edgekit.files.wording import listing

Buffer = bytes | mmap.mmap
"""The whole content of a file, or of a file inside another one."""

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, length of the name, length of the extras


@dataclass(frozen=True, slots=True)
class ZipMember:
    """One file in an archive.

    ``size`` is what it declares to hold once unpacked, ``packed`` what it takes in the archive.
    """

    name: str
    header_offset: int
    size: int
    packed: int
    stored: bool


def as_stream(data: Buffer) -> IO[bytes]:
    """Return ``data`` as a file that is open at its start."""
    if isinstance(data, bytes):
        return io.BytesIO(data)
    data.seek(0)
    return cast("IO[bytes]", data)


def read_members(data: Buffer, where: str) -> tuple[ZipMember, ...]:
    """Read the table of contents.

    Raises:
        LoadError: it is damaged or cut off, or its names or sizes are impossible.
    """
    try:
        with zipfile.ZipFile(as_stream(data)) as archive:
            members = tuple(
                ZipMember(
                    info.filename,
                    info.header_offset,
                    info.file_size,
                    info.compress_size,
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
    # Without regard to case, as torch's own reader looks members up.
    counts = Counter(m.name.casefold() for m in members)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise LoadError(
            f"{where}: the archive has two members of the same name: {listing(twice)}",
            "torch.save never writes such archives: do not use this file",
        )


def _leaves_archive(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return ".." in parts or parts[0] == "" or parts[0].endswith(":")


def check_stored(members: tuple[ZipMember, ...], data: Buffer, where: str) -> None:
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


def member_bytes(member: ZipMember, data: Buffer, where: str) -> bytes:
    """Return the content of a stored member.

    Raises:
        LoadError: the member does not lie inside the file.
    """
    return _slice(member, data, member.size, where)


def inflated_bytes(member: ZipMember, data: Buffer, where: str) -> bytes:
    """Return the content of a member that may be compressed; never more than it declares.

    Raises:
        LoadError: the member does not lie inside the file, or holds something else than it says.
    """
    if member.stored:
        return member_bytes(member, data, where)
    packed = _slice(member, data, member.packed, where)
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = stream.decompress(packed, member.size + 1)
    except zlib.error as error:
        raise _damaged(member, where) from error
    if len(content) != member.size:
        raise _damaged(member, where)
    return content


def write_archive(files: Mapping[str, bytes]) -> io.BytesIO:
    """Return a new archive of stored members, so that what was checked is what is opened."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    buffer.seek(0)
    return buffer


def _slice(member: ZipMember, data: Buffer, length: int, where: str) -> bytes:
    start = member.header_offset + _LOCAL_HEADER.size
    header = data[member.header_offset : start]
    if len(header) == _LOCAL_HEADER.size:
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        start += name_length + extra_length
        if signature == b"PK\x03\x04" and start + length <= len(data):
            return data[start : start + length]
    raise _damaged(member, where)


def _damaged(member: ZipMember, where: str) -> LoadError:
    return LoadError(
        f"{where}: the archive is damaged at its member {listing([member.name])}",
        "copy or download the file again",
    )
