"""A latency regression test as Markdown, for a comment at a pull request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

MARKER = "<!-- edgekit regress -->"
"""First line: by it a later run finds the comment that it replaces."""
_CHECKS = {"int8_layers": "INT8 layers", "size": "size", "output_error": "SQNR"}


def to_markdown(document: Mapping[str, Any]) -> str:
    """Return the text: the verdict, a table of the targets, the reasons and the conditions.

    Args:
        document: what ``--json`` prints.
    """
    return "\n".join(_lines(document)) + "\n"


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    settings = document["settings"]
    yield MARKER
    yield f"### edgekit regress: {document['verdict']}"
    yield ""
    yield f"`{_code(document['head'])}` against `{_code(document['base'])}`"
    yield ""
    heads = ["target", "verdict", "base", "head", "head / base", "limit", *_CHECKS.values()]
    yield _row(heads)
    yield _row(["---"] * len(heads))
    for name, target in document["targets"].items():
        yield _row([name, target["verdict"], *_latency(target["latency"]), *_checks(target)])
    for name in document["lost"]:
        yield _row([name, "regression", *["-"] * (len(heads) - 2)])
    yield ""
    reasons = [f"{n}: {reason}" for n, t in document["targets"].items() for reason in t["reasons"]]
    if lines := [f"- {_text(line)}" for line in (*reasons, *document["notes"])]:
        yield from (*lines, "")
    cpu = document["conditions"]["cpu"]
    confidence = next(
        (t["latency"]["confidence"] for t in document["targets"].values() if t["latency"]), 0.98
    )
    yield _text(
        f"Medians over rounds, intervals of {100 * confidence:.0f} %; tolerance "
        f"{100 * settings['tolerance']:g} % or {settings['floor_us']:g} us. "
        f"{cpu['name']}, {cpu['cores']} cores, {' '.join(cpu['flags'])}."
    )


def _latency(latency: Mapping[str, Any] | None) -> list[str]:
    if latency is None:
        return ["-"] * 4
    ratio = latency["ratio"]
    low, high = ("?" if ratio[k] is None else f"{ratio[k]:.3f}" for k in ("low", "high"))
    return [
        f"{latency['base_ms']:.4g} ms",
        f"{latency['head_ms']:.4g} ms",
        f"{ratio['value']:.3f} [{low}, {high}]",
        f"{latency['limit']:.3f}",
    ]


def _checks(target: Mapping[str, Any]) -> Iterator[str]:
    checks = {check["name"]: check for check in target["checks"]}
    for name in _CHECKS:
        check = checks.get(name)
        if check is None:
            yield "-"
            continue
        before, after = (_figure(name, check[side]) for side in ("base", "head"))
        change = after if before == after else f"{before} to {after}"
        yield change if check["passed"] else f"**{change}**"


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name == "size":
        return f"{value / 1e3:.1f} kB" if value < 1e6 else f"{value / 1e6:.2f} MB"
    return f"{value:.1f} dB" if name == "output_error" else str(value)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(_text(cell) for cell in cells)} |"


def _text(value: str) -> str:
    """Keep names of layers and messages from becoming markup."""
    flat = " ".join(value.split())
    return flat.replace("|", "\\|").replace("<", "&lt;")


def _code(value: str) -> str:
    return " ".join(value.split()).replace("`", "'")
