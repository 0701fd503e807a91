"""The command ``edgekit regress``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit import machine_tables
from edgekit.boundary import write_json
from edgekit.cli_options import (
    AsJson,
    InputSizes,
    TargetNames,
    Threads,
    input_sizes,
    target_names,
)
from edgekit.console import working, write
from edgekit.errors import OutputError


def regress(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="Result or file to compare with.")],
    head: Annotated[Path, typer.Argument(metavar="HEAD", help="Result or file to judge.")],
    tolerance: Annotated[str, typer.Option(metavar="P%", help="Slower by so much passes.")] = "5%",
    floor_us: Annotated[
        float, typer.Option(min=0, metavar="US", help="Slower by microseconds that pass anyhow.")
    ] = 5.0,
    targets: TargetNames = None,
    inputs: InputSizes = None,
    budget: Annotated[float, typer.Option(metavar="S", help="Longest time of sampling.")] = 60.0,
    seconds: Annotated[float, typer.Option(metavar="S", help="Turns in a round.")] = 1.0,
    warmup: Annotated[float, typer.Option(min=0, metavar="S", help="Before the turns.")] = 0.1,
    percentile: Annotated[
        float, typer.Option(min=0, max=100, metavar="N", help="Latency of a turn that counts.")
    ] = 10.0,
    threads: Threads = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Samples in an inference.")] = 1,
    size_tolerance: Annotated[
        str, typer.Option(metavar="P%", help="Larger files by so much pass.")
    ] = "1%",
    min_sqnr: Annotated[
        float, typer.Option(metavar="DB", help="Of outputs, where there is no float network.")
    ] = 20.0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit 1 where the verdict is inconclusive, too.")
    ] = False,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JUnit XML.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a comment for a pull request.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether HEAD is slower than BASE, in one run on this machine; exit 1 if it is."""
    for path in (junit, markdown):
        if path is not None and not path.parent.is_dir():
            raise _unwritable(path, "its folder does not exist")
    with working("regress") as progress:
        from edgekit import regress as run_regress
        from edgekit.regress.junit import to_junit
        from edgekit.regress.markdown import to_markdown

        report = run_regress(
            base,
            head,
            targets=target_names(targets),
            tolerance=tolerance,
            floor_us=floor_us,
            budget_s=budget,
            round_seconds=seconds,
            warmup_seconds=warmup,
            percentile=percentile,
            threads=threads,
            batch=batch,
            shapes=input_sizes(inputs or ()),
            size_tolerance=size_tolerance,
            min_sqnr_db=min_sqnr,
            progress=progress,
        )
    document = report.to_dict()
    if junit is not None:
        _save(junit, to_junit(document, strict=strict))
    if markdown is not None:
        _save(markdown, to_markdown(document))
    if as_json:
        write_json(document)
    else:
        write(machine_tables.regression(document))
    if report.failed(strict=strict):
        raise typer.Exit(1)


def _save(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from error


def _unwritable(path: Path, why: str) -> OutputError:
    return OutputError(f"'{path}' cannot be written: {why}", "choose another file")
