"""The command ``edgekit deploy``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.boundary import write_json
from edgekit.cli_options import AsJson, ResultDir
from edgekit.console import working, write
from edgekit.tables import human_size


def deploy(
    result: ResultDir,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR|FILE.tar.gz", help="The bundle to make.")
    ],
    to: Annotated[str, typer.Option(metavar="DEVICE", help="The kind of device.")] = "jetson",
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the sample inputs.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Make a bundle that builds, checks and runs a result on a device, with nothing to install."""
    with working("deploy") as progress:
        from edgekit.deploy import deploy as make_bundle

        made = make_bundle(result, to=to, out=out, seed=seed, progress=progress)
    if as_json:
        write_json(made.to_dict())
        return
    lines = [
        f"{made.path}: {', '.join(made.targets)} for {made.device}, {made.files} files, "
        f"{human_size(made.size_bytes)}",
        *made.notes,
    ]
    write("\n".join(lines) + "\n")
