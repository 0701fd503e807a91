"""Prints results as text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks._artifacts import ARTIFACTS
from benchmarks._cases import Case
from benchmarks._judge import Row, Score
from benchmarks._measure import Plan

_WIDEST = 44
_BUSY = 0.5  # load average per core above which latencies mean little


def print_conditions(where: Mapping[str, Any]) -> None:
    """Print the machine, and what it means for the figures."""
    flags = " ".join(where["cpu_flags"])
    print(f"\n{where['cpu']}, {where['cores']} cores ({flags})")
    versions = where["versions"]
    shown = ("python", "edgekit-quant", "torch", "onnxruntime", "openvino", "nncf")
    print(", ".join(f"{name} {versions[name]}" for name in shown if name in versions))
    print(
        f"load average {where['load_average_before']} before, {where['load_average_after']} after; "
        f"threads: {where['threads']}; whole run {where['seconds']:.0f} s"
    )
    if where["emulated"]:
        print("AVX-512, VNNI and AMX are hidden: the kernels are those of an AVX2 machine.")
    elif not where["pair_sums_saturate"]:
        print(
            "NOTE: this CPU has VNNI (or is no x86): 16-bit pair sums do not saturate here, so the "
            "peers' figures\nare not those of an AVX2 machine. --emulate-avx2 measures that."
        )
    if where["load_average_before"] > _BUSY * where["cores"]:
        print("NOTE: the machine was busy before the run: times and latencies are inflated.")
    if where["quick"]:
        print("NOTE: a quick run; its figures are too coarse to quote.")


def print_scores(case: Case, plan: Plan, scores: Mapping[str, Score]) -> None:
    """Print accuracy of every artifact."""
    lines = [("made by", "calibrated on", "run by", "top-1", "drop", "agreement", "INT8 convs")]
    for artifact in ARTIFACTS:
        score = scores.get(artifact.key)
        if score is None:
            continue
        by = artifact.runtime.partition("-")[0] if artifact.executed else "simulated"
        counts = score.convolutions
        lines.append(
            (
                artifact.maker,
                artifact.calibrated_on(plan.nncf_samples, plan.onnxruntime_samples),
                by,
                f"{score.top1:.1f}",
                f"{score.drop:+.1f}",
                f"{score.agreement:.1f}",
                "" if counts is None else f"{counts.get('int8', 0)} of {case.convolutions}",
            )
        )
    number = next((score.images for score in scores.values()), 0)
    print(
        f"\n{case.name}: {number} images, percent "
        f"(float top-1 stated with the data, on all images: {case.published_top1:g})"
    )
    _print_columns(lines)


def print_failures(case: Case, failures: Mapping[str, str]) -> None:
    """Print the parts of a network's run that failed."""
    for part, message in failures.items():
        print(f"  FAILED, {case.name}, {part}: {message}")


def print_rows(rows: Sequence[Row]) -> None:
    """Print the table; verdicts in parentheses do not count."""
    for network in dict.fromkeys(row.network for row in rows):
        print(f"\n{network or 'command'}")
        lines = [("figure", "measured", "peers in this run", "to reach", "verdict")]
        lines += [
            (
                row.figure,
                row.measured,
                row.peers,
                row.bar,
                row.verdict if row.judged or row.verdict == "-" else f"({row.verdict})",
            )
            for row in rows
            if row.network == network
        ]
        _print_columns(lines)


def _print_columns(lines: Sequence[Sequence[str]]) -> None:
    wrapped = [[textwrap.wrap(cell, _WIDEST) or [""] for cell in line] for line in lines]
    widths = [
        max(len(part) for line in wrapped for part in line[column])
        for column in range(len(lines[0]))
    ]
    for index, line in enumerate(wrapped):
        for depth in range(max(len(cell) for cell in line)):
            parts = [cell[depth] if depth < len(cell) else "" for cell in line]
            text = "  ".join(p.ljust(w) for p, w in zip(parts, widths, strict=True))
            print(f"  {text.rstrip()}")
        if index == 0:
            print(f"  {'  '.join('-' * width for width in widths)}")
