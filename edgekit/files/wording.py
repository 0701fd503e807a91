"""Put names that come from a file into one safe, short line of text."""

from __future__ import annotations

from collections.abc import Iterable


def printable(text: str, limit: int = 100) -> str:
    """Escape what is not printable (line ends, terminal control codes) and cut what is too long."""
    escaped = "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text[: limit + 1]
    )
    return escaped if len(text) <= limit else escaped[:limit] + "..."


def listing(names: Iterable[str], limit: int = 4) -> str:
    """Return ``a, b, c and 7 more``."""
    everything = list(names)
    shown = ", ".join(printable(name) for name in everything[:limit])
    rest = len(everything) - limit
    return shown if rest <= 0 else f"{shown} and {rest} more"
