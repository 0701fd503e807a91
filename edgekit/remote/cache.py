"""What is kept here of each device: its TensorRT timings, and results of runs that broke off."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from edgekit.errors import OutputError

TIMINGS = "timing.cache"
PARTIAL = "partial.json"
_DIGITS = 16


def device_cache(host_key: str) -> Path:
    """Return the folder of one device, made if need be.

    Args:
        host_key: its fingerprint: a device keeps its timings when it gets another address, and
            another device at the same address does not inherit them.

    Raises:
        OutputError: the folder cannot be made.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    digest = hashlib.sha256(host_key.encode()).hexdigest()[:_DIGITS]
    folder = base / "edgekit" / "devices" / digest
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"'{folder}' cannot be made: {error.strerror}", "set XDG_CACHE_HOME to another folder"
        ) from error
    return folder
