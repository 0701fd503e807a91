"""Open what ``torch.jit.save`` writes, without running anything in it.

A TorchScript archive holds source code of a small language without imports. It is not run when the
archive is opened, unless a class restores its own state, and what it can do to the computer is
limited to the few operators that open files or trust their indices. Archives with either are
refused; the rest is written
anew in memory, so that what was checked is what torch opens.
"""

from __future__ import annotations

import ast
import io
import re
from collections.abc import Iterator

import torch

from edgekit.errors import LoadError, UnsafeFileError
from edgekit.files import torch_save
from edgekit.files.embedded_pickles import pickle_imports
from edgekit.files.foreign import refuse_imports
from edgekit.files.operators import does_more_than_compute
from edgekit.files.pickle_scan import MalformedPickleError, scan_pickle
from edgekit.files.quiet import quiet_torch
from edgekit.files.wording import listing, printable
from edgekit.files.zip_members import (
    Buffer,
    ZipMember,
    inflated_bytes,
    read_members,
    write_archive,
)

# TorchScript's own names, which import nothing.
_OWN_NAMES = ("__torch__.", "torch.jit._pickle.")
_LIBRARIES = ("aten", "prim", "prims", "torchvision")
_REMOTE_CALLS = ("rpc_async", "rpc_remote", "rpc_sync")
_ATTRIBUTE = re.compile(r"(?!__)\w[\w\-]*", re.ASCII)
_NEEDED = re.compile(
    r"(data|constants|attributes)\.pkl|(data|constants)/\d+|code/.*\.py|version|byteorder|\.data/.*"
)
_MAX_CODE = 1 << 26  # bytes of source, unpacked
_TRUST = "TorchScript cannot be opened otherwise: save the network's state dict where it was made"


def read_torchscript(data: Buffer, where: str) -> torch.jit.ScriptModule:
    """Return the network in a TorchScript archive, on the CPU.

    Raises:
        LoadError: it is damaged, or torch cannot read it.
        UnsafeFileError: its code or its pickles could do more than compute.
    """
    archive = write_archive(_checked_files(read_members(data, where), data, where))
    with quiet_torch():
        try:
            network: torch.jit.ScriptModule = torch.jit.load(archive, map_location="cpu")
        except torch_save.READER_ERRORS as error:
            raise torch_save.unreadable(error, where, "TorchScript") from error
    return network


def _checked_files(members: tuple[ZipMember, ...], data: Buffer, where: str) -> dict[str, bytes]:
    roots = {member.name.partition("/")[0] for member in members}
    places = {member: member.name.partition("/")[2] for member in members}
    if len(roots) != 1 or "data.pkl" not in places.values():
        raise LoadError(
            f"{where}: a TorchScript archive has one top folder with data.pkl in it; this one has "
            f"{listing(sorted(roots))}",
            "copy or download the file again",
        )
    _check_sizes(members, data, where)
    files = {}
    for member, place in places.items():
        if not _NEEDED.fullmatch(place):
            continue
        content = inflated_bytes(member, data, where)
        if place.endswith(".pkl"):
            _check_pickle(content, len(data), where)
        elif place.endswith(".py"):
            _check_code(content, place, where)
        files[f"archive/{place}"] = content
    return files


def _check_sizes(members: tuple[ZipMember, ...], data: Buffer, where: str) -> None:
    packed = sum(member.size for member in members if not member.stored)
    stored = sum(member.size for member in members if member.stored)
    if packed > _MAX_CODE or stored > len(data):
        raise LoadError(
            f"{where}: the archive declares {packed + stored:,} bytes of content in a file of "
            f"{len(data):,} bytes",
            "it is damaged or made to exhaust memory: copy or download it again",
        )


def _check_pickle(content: bytes, file_size: int, where: str) -> None:
    try:
        scan = scan_pickle(io.BytesIO(content))
        imports = scan.imports
    except MalformedPickleError as error:
        imports, scan = error.imports, None
    imports |= pickle_imports(content)  # also behind the first pickle, where torch never looks
    foreign = [name for name in imports if not name.startswith(_OWN_NAMES)]
    refuse_imports(foreign, "is a TorchScript archive with a pickle that", where, _TRUST)
    if scan is None or scan.storage_elements > file_size:
        raise LoadError(
            f"{where}: is a TorchScript archive with a damaged table of tensors",
            "copy or download the file again",
        )


def _check_code(source: bytes, place: str, where: str) -> None:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise LoadError(
            f"{where}: the TorchScript code in {printable(place)} cannot be read", _TRUST
        ) from error
    found = next(_objections(tree), None)
    if found is not None:
        raise UnsafeFileError(
            f"{where}: is a TorchScript archive whose code {printable(found, 200)}; nothing was "
            "run",
            _TRUST,
        )


def _objections(tree: ast.Module) -> Iterator[str]:
    """Say what in the code could run when it is opened, or do more than compute.

    Names are refused wherever they stand, since the language can give functions other names.
    """
    parents = {
        id(node.value): node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in ("__setstate__", "__getstate__"):
            yield "restores a state of its own when it is opened, as packed weights do"
        elif isinstance(node, ast.Name):
            library = parents.get(id(node))
            if node.id in _REMOTE_CALLS or (node.id == "ops" and library not in _LIBRARIES):
                yield f"uses {node.id}.{library or ''} of another library"
        elif isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if does_more_than_compute(node.attr):
                yield f"uses {name}, which does more than compute"
            if name == "__torch__.torch.classes":
                yield "uses custom classes"
        for text in _attribute_names(node):
            if not _ATTRIBUTE.fullmatch(text) or does_more_than_compute(text):
                yield f"has an attribute named '{text}'"


def _attribute_names(node: ast.AST) -> Iterator[str]:
    """Yield the attributes that the code names as text, such as ``__annotations__["0"]``."""
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "__annotations__":
        yield from _texts(node.slice)
    elif isinstance(node, ast.Assign):
        targets = {ast.unparse(target) for target in node.targets}
        if targets & {"__parameters__", "__buffers__", "__forward_pre_hooks__"}:
            yield from _texts(node.value)
    elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
        for argument in node.args[1:]:
            yield from _texts(argument)


def _texts(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            yield inner.value
