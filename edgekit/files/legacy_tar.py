"""Read torch's tar format (before 0.2), which torch itself opens only by running what it holds.

Such a file has the members ``storages``, ``tensors`` and ``pickle``. The tensors are rebuilt here
from the raw numbers, with an unpickler that knows ordered dictionaries and types of storages.
"""

from __future__ import annotations

import collections
import io
import pickle
import re
import struct
import tarfile
from typing import IO, Any

import torch
from torch import Tensor

from edgekit.files.embedded_pickles import tar_imports
from edgekit.files.foreign import refuse_imports
from edgekit.files.torch_save import READER_ERRORS, unreadable
from edgekit.files.zip_members import Buffer, as_stream

_TYPE = re.compile(r"torch\.(?:cuda\.)?(?P<kind>[A-Z][a-z]+)(?:Storage|Tensor)")
_DTYPES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
}


def read_legacy_tar(data: Buffer, where: str) -> object:
    """Return the tensors and plain values of a tar file that torch 0.1 wrote.

    Raises:
        LoadError: it is damaged.
        UnsafeFileError: it would import more than weights need.
    """
    foreign = [name for name in tar_imports(data) if not _TYPE.fullmatch(name)]
    refuse_imports(foreign, "is torch's tar format (before 0.2) and", where)
    try:
        members = _members(as_stream(data))
        storages = _read_storages(io.BytesIO(members["storages"]))
        tensors = _read_tensors(io.BytesIO(members["tensors"]), storages)
        return _Unpickler(io.BytesIO(members["pickle"]), tensors).load()
    except (*READER_ERRORS, tarfile.TarError) as error:
        raise unreadable(error, where, "torch 0.1 tar") from error


def _members(stream: IO[bytes]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        for info in archive:
            file = archive.extractfile(info) if info.isfile() else None
            if file is not None:
                found[info.name] = file.read()
    return found


class _Unpickler(pickle.Unpickler):
    """Knows what a dictionary of weights needs; everything else is an error."""

    def __init__(self, stream: IO[bytes], tensors: dict[int, Tensor] | None = None) -> None:
        super().__init__(stream, encoding="utf-8")
        self._tensors = tensors or {}

    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        found = _TYPE.fullmatch(f"{module}.{name}")
        if found is None or found["kind"] not in _DTYPES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _DTYPES[found["kind"]]

    def persistent_load(self, key: object) -> Tensor:
        return self._tensors[int(str(key))]


def _value(stream: IO[bytes]) -> Any:
    return _Unpickler(stream).load()


def _read_storages(stream: IO[bytes]) -> dict[int, Tensor]:
    storages: dict[int, Tensor] = {}
    for _ in range(_value(stream)):
        key, _location, dtype = _value(stream)
        (count,) = struct.unpack("<q", stream.read(8))
        content = stream.read(count * dtype.itemsize)
        storages[key] = torch.frombuffer(bytearray(content), dtype=dtype, count=count)
    for key, root, offset, count in _value(stream):
        storages[key] = storages[root][offset : offset + count]
    return storages


def _read_tensors(stream: IO[bytes], storages: dict[int, Tensor]) -> dict[int, Tensor]:
    tensors: dict[int, Tensor] = {}
    for _ in range(_value(stream)):
        key, place, _type = _value(stream)
        (axes,) = struct.unpack("<i4x", stream.read(8))  # once a count of 8 bytes
        size, stride = (struct.unpack(f"<{axes}q", stream.read(8 * axes)) for _ in range(2))
        (offset,) = struct.unpack("<q", stream.read(8))
        storage = storages[place]
        tensors[key] = storage.as_strided(size, stride, storage.storage_offset() + offset)
    return tensors
