"""Files that a run writes: each whole or not at all, and none over another by accident."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgekit.errors import ConfigError, OutputError


def planned(
    endings_of: Mapping[Path, Mapping[str, str]], folder: Path
) -> dict[Path, dict[str, Path]]:
    """Name what will be written for each file, ``NAME`` and an ending in one folder.

    Args:
        endings_of: each file that is run, with the kinds of its outputs and the endings of their
            names, as in ``-restored.png``.
        folder: where outputs go.

    Raises:
        ConfigError: two files would be written to the same name.
    """
    found: dict[Path, dict[str, Path]] = {}
    owner: dict[Path, Path] = {}
    for file, endings in endings_of.items():
        found[file] = {kind: folder / f"{file.stem}{ending}" for kind, ending in endings.items()}
        for path in found[file].values():
            other = owner.setdefault(path, file)
            if other != file:
                raise ConfigError(
                    f"'{other}' and '{file}' would both be written to '{path}'",
                    "rename one, or run them one after the other with another --out",
                )
    return found


def prepare(paths: Sequence[Path], *, force: bool) -> None:
    """Check before any work that the files can be written, and overwrite nothing.

    Raises:
        OutputError: a file exists and ``force`` is not set, or its folder takes no files.
    """
    for path in paths:
        if os.path.lexists(path) and not (force and path.is_file()):
            raise OutputError(
                f"'{path}' exists already",
                "choose another folder with --out, or overwrite it with --force"
                if path.is_file()
                else "remove it, or choose another folder with --out",
            )
        above = next(folder for folder in path.parents if os.path.lexists(folder))
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            what = "is not a folder" if not above.is_dir() else "cannot be written to"
            raise OutputError(f"'{above}' {what}", "choose another folder with --out")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it appears whole.

    Raises:
        OutputError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return an ``.npz`` in which names are free; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy")  # dated 1980, as all members
            with archive.open(member, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)
    return buffer.getvalue()


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"'{path}' cannot be written: {error.strerror or error}",
        "free space there, or choose another folder with --out",
    )
