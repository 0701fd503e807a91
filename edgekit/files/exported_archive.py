"""Open what ``torch.export.save`` writes, without running anything in it.

``torch.export.load`` unpickles some members freely, loads compiled libraries, and evaluates text
of the program. So an archive is checked member by member and written anew in memory from what
passed: the program's checked text, raw weights, and pickles of weights that torch has opened with
``weights_only=True``. Only that copy reaches torch.
"""

from __future__ import annotations

import io

import torch
from torch.export import ExportedProgram

from edgekit.errors import ConfigError, LoadError, UnsafeFileError
from edgekit.files import torch_save
from edgekit.files.embedded_pickles import zip_imports
from edgekit.files.foreign import refuse_imports
from edgekit.files.payload_check import checked_payload
from edgekit.files.program_check import checked_program
from edgekit.files.quiet import quiet_torch
from edgekit.files.wording import listing, printable
from edgekit.files.zip_members import (
    Buffer,
    ZipMember,
    check_stored,
    member_bytes,
    read_members,
    write_archive,
)

_EXPORT_AGAIN = "export the network again: torch.export.save(torch.export.export(...), 'net.pt2')"
# Members of the format before torch 2.8 -> where their content stands today.
_OLD_NAMES = {
    "serialized_exported_program.json": "models/model.json",
    "serialized_state_dict.pt": "data/weights/model.pt",
    "serialized_constants.pt": "data/constants/model.pt",
    "serialized_example_inputs.pt": "data/sample_inputs/model.pt",
}
_MODEL = "model"  # the one name that torch.export.load returns


def read_exported(data: Buffer, where: str, program: str | None = None) -> ExportedProgram:
    """Return the exported program in an archive.

    Args:
        data: the archive.
        where: its name, for messages.
        program: which of several programs; ``None`` if there is one.

    Raises:
        ConfigError: there are several programs and none of them is named.
        LoadError: the archive is damaged, or torch cannot read it.
        UnsafeFileError: opening it would run code.
    """
    checked = _checked_archive(data, where, program)
    with quiet_torch() as logged:
        try:
            return torch.export.load(checked)
        except torch_save.READER_ERRORS as error:
            raise _rejected(logged.error or error, where) from error


def _checked_archive(data: Buffer, where: str, program: str | None) -> io.BytesIO:
    members = read_members(data, where)
    check_stored(members, data, where)
    imports = zip_imports(members, data, where)
    refuse_imports(imports, "is a torch.export archive with a pickle that", where)
    found = _by_place(members, where)
    name = _program_name(found, where, program)
    files = {
        f"models/{_MODEL}.json": checked_program(
            member_bytes(found[f"models/{name}.json"], data, where), where
        )
    }
    _check_sample_inputs(found.get(f"data/sample_inputs/{name}.pt"), data, where)
    for kind in ("weights", "constants"):
        pickled = found.get(f"data/{kind}/{name}.pt")
        if pickled is not None:
            files[f"data/{kind}/{_MODEL}.pt"] = _checked_pickle(pickled, data, where)
            continue
        folder = f"data/{kind}/"
        raw = {
            place.removeprefix(folder): member
            for place, member in found.items()
            if place.startswith(folder)
        }
        payload = checked_payload(kind, name, raw, data, where)
        files.update({f"{folder}{place}": content for place, content in payload.items()})
    files |= {"archive_format": b"pt2", "archive_version": b"0", ".data/version": b"6\n"}
    files[f"data/sample_inputs/{_MODEL}.pt"] = b""  # shapes are in the program
    return write_archive({f"archive/{place}": content for place, content in files.items()})


def _by_place(members: tuple[ZipMember, ...], where: str) -> dict[str, ZipMember]:
    """Return the members by where they stand below the archive's top folder."""
    if any(member.name in _OLD_NAMES for member in members):
        return {_OLD_NAMES.get(member.name, member.name): member for member in members}
    roots = {member.name.partition("/")[0] for member in members}
    if len(roots) != 1:
        raise LoadError(
            f"{where}: a torch.export archive has one top folder; this one has "
            f"{listing(sorted(roots))}",
            _EXPORT_AGAIN,
        )
    return {member.name.partition("/")[2]: member for member in members}


def _program_name(found: dict[str, ZipMember], where: str, wanted: str | None) -> str:
    names = sorted(
        place.removeprefix("models/").removesuffix(".json")
        for place in found
        if place.startswith("models/") and place.endswith(".json")
    )
    if not names:
        if any(place.startswith("data/aotinductor/") for place in found):
            raise UnsafeFileError(
                f"{where}: holds compiled machine code (AOTInductor) and no network; nothing was "
                "run",
                _EXPORT_AGAIN,
            )
        raise LoadError(f"{where}: is a torch.export archive without a program", _EXPORT_AGAIN)
    if wanted is None and len(names) > 1:
        raise ConfigError(
            f"{where}: holds several programs: {listing(names, 8)}",
            f"choose one, for example: --weights {printable(names[0])}",
        )
    if wanted is not None and wanted not in names:
        raise ConfigError(
            f"{where}: holds no program '{printable(wanted)}'", f"it holds: {listing(names, 8)}"
        )
    return wanted or names[0]


def _check_sample_inputs(member: ZipMember | None, data: Buffer, where: str) -> None:
    """Look through the inputs of the export; they are not opened."""
    if member is not None and member.size:
        torch_save.check_zip(member_bytes(member, data, where), where)


def _checked_pickle(member: ZipMember, data: Buffer, where: str) -> bytes:
    """Return a pickled state dict that torch opens with ``weights_only=True``.

    torch falls back to running a pickle only where that fails, so it must be known not to.
    """
    content = member_bytes(member, data, where)
    torch_save.check_zip(content, where)
    value = torch_save.read_weights(io.BytesIO(content), where)
    if not isinstance(value, dict):
        raise LoadError(f"{where}: '{printable(member.name)}' is no state dict", _EXPORT_AGAIN)
    return content


def _rejected(error: BaseException, where: str) -> LoadError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # torch wraps what happened at one node in a text that ends with the original line.
    reason = lines[-1] if lines else type(error).__name__
    return LoadError(
        f"{where}: torch.export.load cannot read this archive ({printable(reason, 200)})",
        f"it is damaged, or from another version of PyTorch; {_EXPORT_AGAIN}",
    )
