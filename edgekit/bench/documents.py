"""The document of a benchmark as a file that is whole at any time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgekit.errors import OutputError


def document_writer(path: Path | None) -> Callable[[Mapping[str, Any]], None]:
    """Return what writes a document to a file, each time anew.

    Args:
        path: the file; nothing is written if ``None``.

    Raises:
        OutputError: the file's folder does not exist.
    """
    if path is None:
        return lambda _document: None
    if not path.parent.is_dir():
        raise _unwritable(path, "its folder does not exist")
    return lambda document: _write(path, document)


def _write(path: Path, document: Mapping[str, Any]) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise _unwritable(path, error.strerror or str(error)) from error


def _unwritable(path: Path, why: str) -> OutputError:
    return OutputError(f"'{path}' cannot be written: {why}", "choose another file with --out")
