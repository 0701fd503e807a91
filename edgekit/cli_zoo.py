"""The commands below ``edgekit zoo``: the networks that edgekit knows by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit import tables
from edgekit.boundary import write_json
from edgekit.cli_options import AsJson
from edgekit.console import working, write
from edgekit.errors import require

zoo_app = typer.Typer(rich_markup_mode=None, help="Networks that edgekit knows by name.")

_MINUTES = 20.0  # of a training without a budget


@zoo_app.command("list")
def zoo_list(as_json: AsJson = False) -> None:
    """List the networks."""
    with working("list"):
        require("torch", extra="torch")
        from edgekit import zoo

        models = zoo.list_models()
    if as_json:
        write_json({"models": models})
    else:
        write(tables.models(models))


@zoo_app.command("save")
def zoo_save(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As 'edgekit zoo list' shows it.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Checkpoint to write.")],
    as_json: AsJson = False,
) -> None:
    """Write a network with its weights as a checkpoint."""
    with working("save"):
        require("torch", extra="torch")
        from edgekit import zoo

        written = zoo.save_model(name, file)
        origin = zoo.weights_origin(name)
    if as_json:
        document = {"name": name, "file": str(written), "weights": origin}
        write_json({**document, "size_bytes": written.stat().st_size})
    else:
        note = " (random weights: for size and speed only)" if origin == "seeded" else ""
        write(f"written to {written}{note}\n")


@zoo_app.command("train")
def zoo_train(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="As in fcl_gan_small or 'fcl_gan(width=8)'.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="Checkpoint to write.")],
    data: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Data set to learn from  [default: drawn pictures]"),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(metavar="M", help=f"Longest time  [default: {_MINUTES:g}, without --steps]"),
    ] = None,
    steps: Annotated[int | None, typer.Option(metavar="N", help="Number of steps.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Option of this training; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to train.")] = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from FILE.training after an interruption.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a network, with no download if need be, and write it as a checkpoint."""
    with working("load") as progress:
        require("torch", extra="torch")
        from edgekit.training.trainer import train_model

        report = train_model(
            name,
            out,
            data=data,
            steps=steps,
            minutes=_MINUTES if steps is None and minutes is None else minutes,
            seed=seed,
            device=device,
            resume=resume,
            settings=settings or (),
            progress=context.obj.settling(progress),
        )
    document = report.to_dict()
    if as_json:
        write_json(document)
    else:
        write(_training(document))


def _training(document: dict[str, Any]) -> str:
    """Return the text for ``edgekit zoo train``."""
    baseline = document["baseline"]
    beside = "" if baseline is None else f" ({document['baseline_name']}: {baseline:.2f})"
    poor = baseline is not None and document["score"] <= baseline
    advice = "no better than that: train longer, or with other options (--set)\n" if poor else ""
    return (
        f"{document['metric']} {document['score']:.2f} in step {document['best_step']} of "
        f"{document['steps']}{beside}\n{advice}"
        f"trained on {document['data']} in {document['seconds']:.0f} s, seed {document['seed']}\n"
        f"written to {document['file']}\n"
    )
