"""The command ``edgekit run``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.boundary import write_json
from edgekit.cli_options import AsJson, ResultDir, Threads
from edgekit.console import working, write
from edgekit.errors import ConfigError
from edgekit.tables import percent, render


def run(
    result: ResultDir,
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE...", help="Pictures, folders of pictures, .npz of inputs."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="[default: the first that runs here]"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="For what is written  [default: .]"),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Names of the classes, one a line.")
    ] = None,
    support: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER|FILE.npz", help="Examples: a sub-folder for each class."),
    ] = None,
    save_support: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Keep the prototypes of --support.")
    ] = None,
    metric: Annotated[
        str, typer.Option(metavar="M", help="With --support: projection or cosine.")
    ] = "projection",
    tile: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Pictures above N x N pixels run in tiles."),
    ] = 1024,
    threads: Threads = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run the network in DIR on FILEs: restore, classify or embed pictures."""
    with working("run") as progress:
        from edgekit import run as run_result
        from edgekit.few_shot import Metric

        known = [one.value for one in Metric]
        if metric not in known:
            raise ConfigError(f"--metric '{metric}' is not one of {', '.join(known)}")
        report = run_result(
            result,
            files or (),
            target=target,
            out=out,
            classes=classes,
            support=support,
            save_support=save_support,
            metric=Metric(metric),
            tile=tile,
            threads=threads,
            force=force,
            progress=progress,
        )
    document = report.to_dict()
    if as_json:
        write_json(document)
    else:
        write(_table(document))


def _table(document: Mapping[str, Any]) -> str:
    results = document["files"]
    ranked = any(result["classes"] for result in results)
    heads = ("file", "size", "time", "written")
    if ranked:
        heads = ("file", "class", "score", "probability")
    rows = [row for result in results for row in _rows(result, ranked)]
    lines = [f"{result['file']}: {note}" for result in results for note in result["notes"]]
    if document["support"]:
        counts = ", ".join(f"{name} {count}" for name, count in document["support"].items())
        lines.append(f"examples: {counts}; compared by {document['metric']}")
    lines.append(f"run by {document['target']}")
    if document["reason"] is not None:
        lines.append(f"not executed: {document['reason']}")
    lines += [f"{kind} written to {path}" for kind, path in document["outputs"].items()]
    return render(heads, rows, lines) if rows else "\n".join(lines) + "\n"


def _rows(result: Mapping[str, Any], ranked: bool) -> list[tuple[str, ...]]:
    if ranked:
        return [
            (
                result["file"] if place == 0 else "",
                str(guess["index"] if guess["name"] is None else guess["name"]),
                f"{guess['score']:.4g}",
                "-" if guess["probability"] is None else percent(100 * guess["probability"]),
            )
            for place, guess in enumerate(result["classes"])
        ]
    size = result["size"]
    return [
        (
            result["file"],
            "-" if size is None else f"{size[1]}x{size[0]}",
            f"{result['seconds']:.3g} s",
            ", ".join(result["outputs"].values()) or "-",
        )
    ]
