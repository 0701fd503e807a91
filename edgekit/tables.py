"""Results as a person reads them: a table, then what must be known beside it.

Meaning never hangs on a colour. A terminal that is too narrow for the table gets the same values
one below the other.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

_LAYERS_SHOWN = 6
_MEGABYTE = 1e6
_WIDEST = 10_000


def quantization(document: Mapping[str, Any], out: Path) -> str:
    """Return the text for a finished ``edgekit quantize``.

    Args:
        document: content of ``report.json``.
        out: where the result lies.
    """
    heads = ("target", "size (of float)", "INT8 layers", "agreement", "SQNR", "status")
    targets: Mapping[str, Mapping[str, Any]] = document["targets"]
    rows = [_row(name, target, document["float_size_bytes"]) for name, target in targets.items()]
    notes = ["agreement and SQNR: with the float network, on synthetic inputs"]
    notes += [*document["model"]["notes"], *document["calibration"]["notes"]]
    notes += [f"{name}: {note}" for name, target in targets.items() for note in _notes(target)]
    seconds = document["seconds"]["total"]
    return render(heads, rows, [*notes, f"written to {out} in {seconds:.0f} s"])


def _row(name: str, target: Mapping[str, Any], float_bytes: int) -> tuple[str, ...]:
    size, layers = target.get("size_bytes"), target.get("weighted_layers")
    return (
        name,
        "-" if size is None else f"{human_size(size)} ({100 * size / float_bytes:.0f} %)",
        f"{target['integer_layers']} of {layers}" if layers else "-",
        percent(target.get("agreement")),
        _decibel(target),
        _status(target),
    )


def _status(target: Mapping[str, Any]) -> str:
    if target["status"] != "ok":
        return "failed"
    if target["executed"]:
        return "ok"
    return "not checked" if target["agreement"] is None else "simulated"


def _notes(target: Mapping[str, Any]) -> Iterator[str]:
    if target["failure"] is not None:
        yield f"failed: {target['failure']}"
        return
    if target["reason"] is not None:
        planned = "; its INT8 layers are the planned ones" if target["integer_layers"] else ""
        yield f"not executed: {target['reason']}{planned}"
    layers_of: dict[str, list[str]] = {}
    for layer, reason in target["float_layers"].items():
        layers_of.setdefault(reason, []).append(layer)
    for reason, layers in layers_of.items():
        hidden = len(layers) - _LAYERS_SHOWN
        more = f" and {hidden} more, see report.json" if hidden > 0 else ""
        yield f"in float: {', '.join(layers[:_LAYERS_SHOWN])}{more} ({reason})"
    yield from target["notes"]


def evaluation(document: Mapping[str, Any]) -> str:
    """Return the text for a finished ``edgekit evaluate``.

    Args:
        document: what ``--json`` prints.
    """
    heads = ("target", "top-1", "agreement with float", "images", "status")
    rows = [("float", percent(document["float"]["top1"]), "-", "-", "reference")]
    notes = []
    for name, score in document["targets"].items():
        status = "executed" if score["executed"] else "simulated" if score["n"] else "not run"
        agreement = percent(score["agreement"])
        rows.append((name, percent(score["top1"]), agreement, str(score["n"]), status))
        if score["reason"] is not None:
            notes.append(f"{name}: {score['reason']}")
    return render(heads, rows, notes)


def models(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return the text for ``edgekit zoo list``.

    Args:
        documents: what :func:`edgekit.zoo.list_models` returns.
    """
    heads = ("name", "task", "inputs", "parameters", "weights")
    rows = [
        (
            model["name"],
            model["task"],
            ", ".join("x".join(map(str, spec["shape"])) for spec in model["inputs"]),
            f"{model['parameters'] / 1e6:.2f} M",
            str(model["weights"]) + ("" if model["weights_available"] else ", not installed"),
        )
        for model in documents
    ]
    return render(heads, rows, ())


class _Draft(io.TextIOWrapper):
    """Memory that looks like standard output to rich: same characters, terminal or not."""

    def __init__(self) -> None:
        self._bytes = io.BytesIO()
        super().__init__(self._bytes, sys.stdout.encoding or "utf-8", "backslashreplace")

    def isatty(self) -> bool:
        return sys.stdout.isatty()

    def text(self) -> str:
        self.flush()
        return self._bytes.getvalue().decode(self.encoding)


def render(heads: Sequence[str], rows: Sequence[Sequence[str]], lines: Sequence[str]) -> str:
    """Return a table and lines below it, as wide and in the characters that the output shows."""
    from rich.console import Console

    draft = _Draft()
    console = Console(file=draft, highlight=False, markup=False, emoji=False)
    table = _table(heads, rows)
    unlimited = console.options.update(max_width=_WIDEST)
    if console.measure(table, options=unlimited).maximum <= console.width:
        console.print(table)
    else:
        for row in rows:
            pairs = zip(heads[1:], row[1:], strict=True)
            text = "\n".join([row[0], *(f"  {head}: {value}" for head, value in pairs)])
            console.print(text, soft_wrap=True)
    for line in dict.fromkeys(lines):
        # Paths and commands are copied from here: never broken by us, only by the terminal.
        console.print(line, soft_wrap=True)
    return draft.text()


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for head in heads:
        numeric = head not in (heads[0], heads[-1])
        table.add_column(head, no_wrap=True, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*row)
    return table


def synthesis(document: Mapping[str, Any]) -> str:
    """Return what ``edgekit synthesize`` prints."""
    heads = ["array", "shape"]
    rows = [[name, "x".join(map(str, shape))] for name, shape in document["arrays"].items()]
    lines = list(document["notes"])
    if document["gallery"] is not None:
        lines.append(f"pictures in {document['gallery']}")
    lines.append(f"written to {document['file']} ({human_size(document['size_bytes'])})")
    return render(heads, rows, lines)


def human_size(size_bytes: int) -> str:
    """Return a size for people."""
    if size_bytes >= _MEGABYTE:
        return f"{size_bytes / _MEGABYTE:.2f} MB"
    return f"{size_bytes / 1e3:.1f} kB"


def _decibel(target: Mapping[str, Any]) -> str:
    value = target.get("sqnr_db")
    if value is not None:
        return f"{value:.1f} dB"
    ran = target.get("agreement") is not None
    return "infinite" if ran and target["passed"] else "-"  # JSON has no infinity


def percent(value: float | None) -> str:
    """Return a percentage for people; ``-`` for none."""
    return "-" if value is None else f"{value:.1f} %"
