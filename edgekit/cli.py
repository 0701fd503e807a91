"""The command line: each command builds values, calls one public function and prints one result.

Exit codes: 0 done, 1 a check failed (the result is kept), 2 the user's error, 3 a bug of edgekit,
130 interrupted. After 2, 3 and 130 the output directory does not exist. ``docs/cli.md`` is the
reference.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from edgekit import machine_tables, tables
from edgekit.boundary import Boundary, write_json
from edgekit.budget import parse_budget
from edgekit.cli_bench import bench, doctor
from edgekit.cli_deploy import deploy
from edgekit.cli_options import AsJson, ResultDir, TargetNames, target_names
from edgekit.cli_regress import regress
from edgekit.cli_run import run
from edgekit.cli_zoo import zoo_app
from edgekit.console import working, write
from edgekit.errors import ConfigError, require
from edgekit.options import parse_input, parse_preprocessing
from edgekit.types import SCHEMES, Cpu, Effort, Rounding, Task

_FIXED_BY_RECIPE = {
    "inputs": "--input",
    "preprocessing": "--preprocessing",
    "task": "--task",
    "scheme": "--scheme",
    "end_bits": "--end-bits",
    "rounding": "--rounding",
    "max_drop": "--max-drop",
    "max_size": "--max-size",
    "max_latency": "--max-latency",
    "targets": "--targets",
    "calibration": "--calibration",
    "effort": "--effort",
    "cpu": "--cpu",
    "seed": "--seed",
}

# Without rich's markup, help is printed without importing rich.
app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(zoo_app, name="zoo")

WhichWeights = Annotated[
    str | None, typer.Option("--weights", metavar="KEY", help="Set of weights in MODEL, as in ema.")
]
TrustPickle = Annotated[
    bool, typer.Option("--trust-pickle", help="Run the code in MODEL where opening it needs that.")
]
CheckpointFile = Annotated[
    Path | None,
    typer.Option("--checkpoint", metavar="FILE", help="Where a long calibration goes on from."),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        from edgekit import __version__

        write(f"edgekit {__version__}\n")
        raise typer.Exit


@app.callback()
def _edgekit(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Quantize trained networks to INT8 without data, and check each artifact by running it."""
    del version  # its callback did all


@app.command()
def quantize(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="File of weights.")],
    arch: Annotated[
        str | None, typer.Option(metavar="A", help="zoo:NAME or 'module:factory(width=0.75)'.")
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="SHAPE", help="[NAME:]1x3x224x224[:DTYPE]; repeatable."),
    ] = None,
    preprocessing: Annotated[
        str | None,
        typer.Option(metavar="P", help="As in mean=0.5,std=0.5,resize=256,crop=224."),
    ] = None,
    task: Annotated[Task | None, typer.Option(help="What the first output means.")] = None,
    scheme: Annotated[
        str,
        typer.Option(metavar="S", help=f"Bits of weights, activations: {', '.join(SCHEMES)}."),
    ] = "w8a8",
    end_bits: Annotated[
        int,
        typer.Option(metavar="N", help="Bits of the first and last layers, 4 to 8."),
    ] = 8,
    rounding: Annotated[
        Rounding, typer.Option(help="How weights below 8 bits are rounded.")
    ] = Rounding.AUTO,
    max_drop: Annotated[
        float | None,
        typer.Option(metavar="POINTS", help="With --scheme mixed: expected loss of accuracy."),
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="With --scheme mixed: 1.2MB, or 0.2x.")
    ] = None,
    max_latency: Annotated[
        str | None, typer.Option(metavar="TIME", help="With --scheme mixed: 5ms, timed here.")
    ] = None,
    targets: TargetNames = None,
    calibration: Annotated[
        str,
        typer.Option(
            metavar="C", help="auto, renorm, distill, clusterq, FILE.npz; noise, images:DIR."
        ),
    ] = "auto",
    effort: Annotated[Effort, typer.Option(help="Budget of time.")] = Effort.STANDARD,
    cpu: Annotated[
        Cpu, typer.Option(help="CPU to be exact on; avx2 is exact on every x86 CPU.")
    ] = Cpu.AVX2,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Repeat the recipe.json of a result.")
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="Exit 1 below this agreement with float, percent."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Directory to create  [default: MODEL-SCHEME]"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda", help="Where calibration runs.")
    ] = "auto",
    checkpoint: CheckpointFile = None,
    weights: WhichWeights = None,
    trust_pickle: TrustPickle = False,
    as_json: AsJson = False,
) -> None:
    """Quantize MODEL and write one checked artifact for each target."""
    if recipe is not None:
        _refuse_what_the_recipe_fixes(context)
    with working("load") as progress:
        require("torch", extra="torch")
        from edgekit import pipeline
        from edgekit.recipe import read_recipe

        replayed = None if recipe is None else read_recipe(recipe)
        folder = out or Path(f"{model.stem}-{replayed.scheme if replayed else scheme}")
        report = pipeline.quantize(
            model,
            out=folder,
            arch=arch,
            inputs=[parse_input(text) for text in inputs or ()],
            preprocessing=None if preprocessing is None else parse_preprocessing(preprocessing),
            task=task,
            scheme=scheme,
            end_bits=end_bits,
            rounding=rounding,
            budget=parse_budget(max_drop=max_drop, max_size=max_size, max_latency=max_latency),
            targets=target_names(targets),
            calibration=calibration,
            effort=effort,
            cpu=cpu,
            recipe=replayed,
            min_agreement=min_agreement,
            seed=seed,
            device=device,
            checkpoint=checkpoint,
            trust_pickle=trust_pickle,
            weights=weights,
            progress=context.obj.settling(progress),
        )
    document = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    if not as_json:
        write(tables.quantization(document, folder))
    pipeline.raise_for_failures(report)
    if as_json:
        write_json({**document, "out": str(folder)})


@app.command()
def synthesize(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="File of weights.")],
    samples: Annotated[
        int, typer.Option("-n", "--samples", min=1, metavar="N", help="Samples to make.")
    ] = 256,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="FILE", help="File to write, .npz.")
    ] = Path("calib.npz"),
    engine: Annotated[str, typer.Option(metavar="E", help="distill or clusterq.")] = "distill",
    arch: Annotated[
        str | None, typer.Option(metavar="A", help="zoo:NAME or 'module:factory(width=0.75)'.")
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="SHAPE", help="[NAME:]1x3x224x224[:DTYPE]; repeatable."),
    ] = None,
    preprocessing: Annotated[
        str | None,
        typer.Option(metavar="P", help="As in mean=0.5,std=0.5,resize=256,crop=224."),
    ] = None,
    task: Annotated[Task | None, typer.Option(help="What the first output means.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda", help="Where the work is done.")
    ] = "auto",
    checkpoint: CheckpointFile = None,
    weights: WhichWeights = None,
    trust_pickle: TrustPickle = False,
    as_json: AsJson = False,
) -> None:
    """Make inputs for MODEL, with which any other quantizer can be calibrated."""
    with working("load") as progress:
        require("torch", extra="torch")
        from edgekit.synthesize import synthesize as run_synthesis

        made = run_synthesis(
            model,
            out=out,
            samples=samples,
            engine=engine,
            arch=arch,
            inputs=[parse_input(text) for text in inputs or ()],
            preprocessing=None if preprocessing is None else parse_preprocessing(preprocessing),
            task=task,
            seed=seed,
            device=device,
            checkpoint=checkpoint,
            trust_pickle=trust_pickle,
            weights=weights,
            progress=context.obj.settling(progress),
        )
    document = made.to_dict()
    if as_json:
        write_json(document)
    else:
        write(tables.synthesis(document))


@app.command()
def evaluate(
    result: ResultDir,
    data: Annotated[
        Path, typer.Option(metavar="PATH", help="<index>_*.jpg files, class folders, or an npz.")
    ],
    targets: TargetNames = None,
    classes: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Names of the classes, one a line.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Use N images, evenly spread.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the accuracy of every target in DIR on labelled images."""
    with working("evaluate") as progress:
        from edgekit import evaluate as evaluate_result

        report = evaluate_result(
            result,
            data,
            targets=target_names(targets),
            classes=classes,
            limit=limit,
            progress=progress,
        )
    document = report.to_dict()
    if as_json:
        write_json(document)
    else:
        write(tables.evaluation(document))


app.command()(run)
app.command()(bench)
app.command()(regress)
app.command()(doctor)
app.command()(deploy)


@app.command()
def inspect(
    model: Annotated[Path, typer.Argument(metavar="MODEL|DIR", help="Weights, or a result.")],
    arch: Annotated[
        str | None, typer.Option(metavar="A", help="zoo:NAME or 'module:factory(width=0.75)'.")
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="SHAPE", help="[NAME:]1x3x224x224[:DTYPE]; repeatable."),
    ] = None,
    preprocessing: Annotated[
        str | None,
        typer.Option(metavar="P", help="As in mean=0.5,std=0.5,resize=256,crop=224."),
    ] = None,
    task: Annotated[Task | None, typer.Option(help="What the first output means.")] = None,
    cpu: Annotated[Cpu, typer.Option(help="CPU to be exact on.")] = Cpu.AVX2,
    weights: WhichWeights = None,
    trust_pickle: TrustPickle = False,
    as_json: AsJson = False,
) -> None:
    """Show the layers of a network or of a result, and what runs in INT8."""
    with working("inspect"):
        if model.is_dir():
            from edgekit.inspect_result import inspect_result

            document, show = inspect_result(model).to_dict(), machine_tables.result_inspection
        else:
            require("torch", extra="torch")
            from edgekit.inspect_model import inspect_model

            seen = inspect_model(
                model,
                arch=arch,
                inputs=[parse_input(text) for text in inputs or ()],
                preprocessing=None if preprocessing is None else parse_preprocessing(preprocessing),
                task=task,
                cpu=cpu,
                trust_pickle=trust_pickle,
                weights=weights,
            )
            document, show = seen.to_dict(), machine_tables.model_inspection
    if as_json:
        write_json(document)
    else:
        write(show(document))


def _refuse_what_the_recipe_fixes(context: typer.Context) -> None:
    given = []
    for name, flag in _FIXED_BY_RECIPE.items():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            given.append(flag)
    if given:
        raise ConfigError(
            f"--recipe fixes {', '.join(given)} already",
            "beside --recipe only --arch, --weights, --trust-pickle, --out, --min-agreement, "
            "--device, --checkpoint and --json may be given; to change more, edit a copy of the "
            "recipe",
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: what follows the command's name; ``sys.argv`` if ``None``.
    """
    # Read by torch's thread pool when it loads. Threads that spin while they wait for one another
    # make a run 2 to 4 times slower beside another busy process; sleeping costs nothing alone.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Known before parsing, because what cannot be parsed is an error document, too.
    as_json = "--json" in words[: words.index("--")] if "--" in words else "--json" in words
    boundary = Boundary(as_json=as_json)
    with boundary:
        command = typer.main.get_command(app)
        with command.make_context("edgekit", words, obj=boundary) as context:
            command.invoke(context)
    return boundary.exit_code


if __name__ == "__main__":
    sys.exit(main())
