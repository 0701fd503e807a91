"""Tell from its content what a file is, whatever its name says."""

from __future__ import annotations

import enum
import json
import mmap
import re
from typing import IO, NoReturn, cast

from edgekit.errors import LoadError
from edgekit.files import embedded_pickles
from edgekit.files.foreign import refuse_imports
from edgekit.files.pickle_scan import MalformedPickleError, scan_pickle
from edgekit.files.wording import listing
from edgekit.files.zip_members import ZipMember, read_members

# The number with which torch's format before 1.6 begins, as pickle writes it.
_LEGACY_MAGIC = re.compile(
    rb"\x80[\x02-\x05]\x8a\x0a" + re.escape(0x1950A86A20F9469CFC6C.to_bytes(10, "little")) + rb"\."
)
_HEAD = 1024  # bytes that are enough to recognise every format below
_MAX_SAFETENSORS_HEADER = 100_000_000  # the limit in the format's own reader
_PASS_STATE_DICT = (
    "edgekit starts from the PyTorch network: pass its state dict (torch.save or safetensors) "
    "with --arch"
)
_UNPACK = "unpack it and pass the file inside"
_SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras or MATLAB)", _PASS_STATE_DICT),
    (4, b"TFL3", "a TensorFlow Lite model", _PASS_STATE_DICT),
    (0, b"GGUF", "a GGUF model", _PASS_STATE_DICT),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image", _PASS_STATE_DICT),
    (0, b"\xff\xd8\xff", "a JPEG image", _PASS_STATE_DICT),
    (0, b"\x7fELF", "a program or library (ELF)", _PASS_STATE_DICT),
    (0, b"%PDF", "a PDF document", _PASS_STATE_DICT),
    (0, b"\x1f\x8b", "compressed by gzip", _UNPACK),
    (0, b"BZh", "compressed by bzip2", _UNPACK),
    (0, b"\xfd7zXZ\x00", "compressed by xz", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (
        0,
        b"version https://git-lfs",
        "a Git LFS pointer and not the file itself",
        "fetch the file with: git lfs pull",
    ),
)
# ONNX is a bare protocol buffer: field 1 (the format's version, a small number), then a
# length-delimited field from 2 (producer) to 8 (operator sets).
_ONNX = re.compile(rb"\x08[\x01-\x20][\x12\x1a\x22\x32\x3a\x42]")


# A protocol mark and one of the instructions that a pickler writes first.
_PICKLE_HEAD = re.compile(rb"\x80[\x02-\x05][\x28KMJNX\x5d\x63\x7d\x8a\x8c\x95]")


class FileKind(enum.Enum):
    """A container of weights or of a whole network that edgekit opens."""

    SAFETENSORS = "safetensors"
    TORCH_ZIP = "torch.save"
    TORCH_LEGACY = "torch.save before PyTorch 1.6"
    TORCH_TAR = "torch.save before PyTorch 0.2"
    PICKLE = "bare pickle"
    EXPORTED_PROGRAM = "torch.export.save"
    TORCHSCRIPT = "torch.jit.save"


def recognize(data: mmap.mmap, where: str) -> FileKind:
    """Return which container of weights ``data`` is.

    Args:
        data: the whole file.
        where: its name, for messages.

    Raises:
        LoadError: it is something else; the message says what and the hint how to go on.
        UnsafeFileError: opening it would run code that it contains.
    """
    head = data[:_HEAD]
    if _is_safetensors(head):
        _check_safetensors_header(data, where)
        return FileKind.SAFETENSORS
    if head.startswith(b"PK\x03\x04"):
        return _zip_kind(read_members(data, where), data, where)
    if embedded_pickles.is_tar(head):  # first: torch.load also asks for this before all else
        return _tar_kind(data, head, where)
    if _LEGACY_MAGIC.match(head):
        return FileKind.TORCH_LEGACY
    if not _is_pickle(data, head, where):
        _refuse_other(data, head, where)
    return FileKind.PICKLE


def _is_safetensors(head: bytes) -> bool:
    return re.match(rb'\{\s*["}]', head[8:64]) is not None


def _check_safetensors_header(data: mmap.mmap, where: str) -> None:
    length = int.from_bytes(data[:8], "little")
    if length > _MAX_SAFETENSORS_HEADER or 8 + length > len(data):
        raise LoadError(
            f"{where}: looks like safetensors, but its header declares {length:,} bytes in a file "
            f"of {len(data):,} bytes",
            "the file is damaged or cut off: copy or download it again",
        )
    try:
        json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise LoadError(
            f"{where}: looks like safetensors, but its header is not JSON ({error})",
            "the file is damaged: copy or download it again",
        ) from error


def _zip_kind(members: tuple[ZipMember, ...], data: mmap.mmap, where: str) -> FileKind:
    names = [member.name.partition("/")[2] or member.name for member in members]
    if "archive_format" in names or "serialized_exported_program.json" in names:
        return FileKind.EXPORTED_PROGRAM
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        return FileKind.TORCHSCRIPT
    if "data.pkl" in names:
        return FileKind.TORCH_ZIP
    imports = embedded_pickles.zip_imports(members, data, where)
    refuse_imports(imports, "is a zip archive with a pickle that", where)
    if names and all(name.endswith(".npy") for name in names):
        raise LoadError(f"{where}: is a NumPy archive (npz), not a network", _PASS_STATE_DICT)
    shown = listing(member.name for member in members) or "nothing"
    raise LoadError(
        f"{where}: is a zip archive that torch.save did not write (it holds {shown})",
        _PASS_STATE_DICT,
    )


def _tar_kind(data: mmap.mmap, head: bytes, where: str) -> FileKind:
    if head.startswith((b"sys_info\x00", b"pickle\x00", b"storages\x00", b"tensors\x00")):
        return FileKind.TORCH_TAR
    refuse_imports(embedded_pickles.tar_imports(data), "is a tar archive with a pickle that", where)
    raise LoadError(f"{where}: is a tar archive, not a network", _UNPACK)


def _refuse_other(data: mmap.mmap, head: bytes, where: str) -> NoReturn:
    for offset, signature, what, hint in _SIGNATURES:
        if head.startswith(signature, offset):
            raise LoadError(f"{where}: is {what}, not a PyTorch file", hint)
    if head.startswith(b"\x93NUMPY"):
        refuse_imports(embedded_pickles.npy_imports(data), "is a NumPy array that", where)
        raise LoadError(f"{where}: is a NumPy array, not a network", _PASS_STATE_DICT)
    if _ONNX.match(head):
        raise LoadError(f"{where}: is an ONNX model, not a PyTorch file", _PASS_STATE_DICT)
    if _is_text(head):
        first = listing([head.decode("utf-8", "replace").strip().partition("\n")[0]])
        raise LoadError(f"{where}: is a text file that begins '{first}'", _PASS_STATE_DICT)
    raise LoadError(
        f"{where}: is not a PyTorch or safetensors file (it begins with bytes {head[:8].hex(' ')})",
        _PASS_STATE_DICT,
    )


def _is_pickle(data: mmap.mmap, head: bytes, where: str) -> bool:
    """Whether ``data`` is a pickle that imports something; without imports it holds no tensors."""
    declared = _PICKLE_HEAD.match(head) is not None
    if not declared and any(head.startswith(text, at) for at, text, _, _ in _SIGNATURES):
        return False
    data.seek(0)
    try:
        imports = scan_pickle(cast("IO[bytes]", data)).imports
    except MalformedPickleError as error:
        if not declared:
            return False  # bytes that only begin like pickle instructions
        if not error.imports:
            raise LoadError(
                f"{where}: starts like a pickle but is damaged or cut off ({error})",
                "copy or download the file again",
            ) from error
        return True
    if declared and not imports:
        raise LoadError(f"{where}: is a pickle without tensors", _PASS_STATE_DICT)
    return bool(imports)


def _is_text(head: bytes) -> bool:
    text = head.decode("utf-8", "ignore")
    lost = len(head) - len(text.encode())
    cut = 3 if len(head) == _HEAD else 0  # the end of the head may cut a character in two
    return lost <= cut and all(char.isprintable() or char.isspace() for char in text)
