"""What ``edgekit bench`` and ``edgekit doctor`` do with ``--device``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.types import Progress

DeviceName = Annotated[
    str | None,
    typer.Option("--device", metavar="D", help="ssh://user@host[:port], or of devices.toml."),
]
OutFile = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help="Write the document here, round by round."),
]


def bench_there(
    paths: Sequence[Path],
    device: str,
    options: Mapping[str, Any],
    out: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    """Run a benchmark on a device and return its document.

    Args:
        paths: what to time.
        device: what ``--device`` says.
        options: of :func:`edgekit.bench.bench`, as JSON values.
        out: file for the document.
        progress: called as it advances.

    Raises:
        ConfigError: there is no such device.
        DeviceError: the device cannot be used.
    """
    from edgekit.remote.devices import find_device
    from edgekit.remote.run import bench_on_device

    return bench_on_device(paths, find_device(device), options, out=out, progress=progress)


def doctor_there(device: str, progress: Progress) -> dict[str, Any]:
    """Examine a device and return its document.

    Args:
        device: what ``--device`` says.
        progress: called as it advances.

    Raises:
        DeviceError: the device cannot be used.
    """
    from edgekit.remote.devices import find_device
    from edgekit.remote.run import doctor_on_device

    return doctor_on_device(find_device(device), progress=progress)
