"""Options that several commands share, and what their texts mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from edgekit.errors import ConfigError
from edgekit.options import InputOption, parse_input
from edgekit.registry import RUNNERS, VARIANTS

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document, not a table.")]
ResultDir = Annotated[Path, typer.Argument(metavar="DIR", help="What 'edgekit quantize' wrote.")]
TargetNames = Annotated[
    str | None, typer.Option("--targets", metavar="A,B", help="Of onnxruntime,openvino,tensorrt.")
]
BenchTargets = Annotated[
    str | None,
    typer.Option(
        "--targets",
        metavar="A,B",
        help=f"Of {', '.join(RUNNERS)}, {', '.join(VARIANTS)}; or all.",
    ),
]
InputSizes = Annotated[
    list[str] | None,
    typer.Option("--input", metavar="NAME:SHAPE", help="Where a file leaves sizes open."),
]
Threads = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="[default: each runtime's own choice]")
]


def target_names(text: str | None) -> list[str] | None:
    """Return the names in ``--targets``."""
    return None if text is None else [name.strip() for name in text.split(",")]


def named_inputs(texts: Sequence[str]) -> list[InputOption]:
    """Return the inputs in ``--input``.

    Raises:
        ConfigError: a text has another form, or no name.
    """
    options = [parse_input(text) for text in texts]
    for option in options:
        if option.name is None:
            raise ConfigError(
                f"--input {'x'.join(map(str, option.shape))}: which input is it?",
                "write its name before it, as in --input image:1x3x224x224",
            )
    return options


def input_sizes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the sizes in ``--input``, by name of the input.

    Raises:
        ConfigError: a text has another form, or no name.
    """
    return {str(option.name): option.shape for option in named_inputs(texts)}
