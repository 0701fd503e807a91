"""Files of the kernel, each with one value; absent and unreadable ones are ``None``."""

from __future__ import annotations

from pathlib import Path


def read_text(path: Path) -> str | None:
    """Return the stripped contents of a file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n\t")
    except OSError:
        return None


def read_integer(path: Path) -> int | None:
    """Return the integer in a file."""
    text = read_text(path)
    return int(text) if text is not None and text.lstrip("-").isdigit() else None
