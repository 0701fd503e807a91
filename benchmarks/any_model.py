"""Any model, safely, in one run: hostile files, networks of every common kind, `edgekit bench`.

    python -m benchmarks.any_model

``benchmarks/README.md`` says what is measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks._cases import ROOT
from benchmarks._conditions import conditions, load_average
from benchmarks._measure import edgekit_command
from benchmarks._networks import NetworkResult, network_cases, quantize_networks
from benchmarks._networks_table import page, terminal_lines
from benchmarks._process import StepError

_TARGETS = ("onnxruntime", "openvino", "tensorrt")
_LEAST_FILES = 30
_LEAST_NETWORKS, _LEAST_SHARE = 25, 22 / 25
_SCHEMA = 1
_USER_ERROR = 2


@dataclass(frozen=True, slots=True)
class Row:
    """One bar: what was measured, what is to be reached, whether it is."""

    name: str
    measured: str
    bar: str
    reached: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 all bars reached, 1 a bar missed, 2 it cannot run."""
    options = _parse(arguments)
    try:
        edgekit_command()
        return _run(options, _chosen(options.networks))
    except StepError as error:
        _say(str(error))
        return _USER_ERROR


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.any_model", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--networks", metavar="A,B", help="only these, for a quick look; the count is then missed")
    add("--skip-bench", action="store_true", help="leave out the timings, which need an idle CPU")
    add("--blocks", type=int, default=9, help="alternating blocks of the timings (default 9)")
    add("--json", type=Path, metavar="FILE", help="write everything that was measured")
    add("--docs", type=Path, metavar="FILE", help="write the table of networks as Markdown")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace, cases: Sequence[Any]) -> int:
    started = time.perf_counter()
    where = conditions()
    _say("hostile files")
    files = _child_document(["benchmarks.hostile_files", "--json"])
    with tempfile.TemporaryDirectory(prefix="edgekit-benchmark-") as name:
        networks = quantize_networks(cases, Path(name), _say)
    rows = [*_file_rows(files), *_network_rows(networks)]
    bench = None if options.skip_bench else _bench(options.blocks)
    rows += [] if bench is None else _bench_rows(bench)
    where["load_average_after"] = load_average()
    where["seconds"] = round(time.perf_counter() - started, 1)
    _print(where, networks, rows)
    if options.json is not None:
        document = {
            "schema_version": _SCHEMA,
            "conditions": where,
            "rows": [asdict(row) for row in rows],
            "files": files,
            "networks": [result.to_dict() for result in networks],
            "bench": bench,
        }
        _write(options.json, json.dumps(document, indent=1) + "\n")
    if options.docs is not None:
        _write(options.docs, page(networks, _TARGETS, where))
    return 0 if all(row.reached for row in rows) else 1


def _chosen(names: str | None) -> list[Any]:
    cases = {case.name: case for case in network_cases()}
    wanted = list(cases) if names is None else names.split(",")
    unknown = sorted(set(wanted) - set(cases))
    if unknown:
        raise StepError(f"unknown network {', '.join(unknown)}; known: {', '.join(cases)}")
    return [cases[name] for name in wanted]


def _child_document(words: Sequence[str]) -> dict[str, Any]:
    """Run a module that prints one JSON document; what it opens must not reach this process."""
    command = [sys.executable, "-m", *words]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    try:
        document: dict[str, Any] = json.loads(told.stdout)
    except ValueError as error:
        raise StepError(f"{words[0]} did not finish: {told.stderr.strip()[-400:]}") from error
    return document


def _bench(blocks: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="edgekit-benchmark-") as name:
        path = Path(name) / "bench.json"
        words = ["benchmarks.bench_overhead", "--blocks", str(blocks), "--json", str(path)]
        command = [sys.executable, "-m", *words]
        # its table is part of the JSON; its progress goes on to standard error
        code = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode
        if not path.exists():
            raise StepError(f"{words[0]} ended with code {code} and without a result")
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return document


def _file_rows(files: dict[str, Any]) -> list[Row]:
    cases = files["files"]
    refused = sum(case["refused"] for case in cases)
    proven = sum(case["runs_when_opened_carelessly"] for case in cases)
    count = f"{len(cases)}, {proven} of them shown to run a command when opened carelessly"
    return [
        Row("hostile files", count, f"at least {_LEAST_FILES}", len(cases) >= _LEAST_FILES),
        Row("  executed", str(files["executed"]), "0", files["executed"] == 0),
        Row("  tracebacks", str(files["tracebacks"]), "0", files["tracebacks"] == 0),
        Row("  refused by name", str(refused), "all", refused == len(cases)),
    ]


def _network_rows(networks: Sequence[NetworkResult]) -> list[Row]:
    count = len(networks)
    verified = sum(result.verified(_TARGETS) for result in networks)
    rest = [result for result in networks if not result.verified(_TARGETS)]
    unexplained = [r.name for r in rest if not all(r.reasons(_TARGETS).values())]
    pairs = [(r.name, name, target) for r in networks for name, target in r.targets.items()]
    silent = [f"{network} ({name})" for network, name, target in pairs if target.silent]
    floating = [f"{network} ({name})" for network, name, target in pairs if target.mostly_float]
    return [
        Row("networks", str(count), f"at least {_LEAST_NETWORKS}", count >= _LEAST_NETWORKS),
        Row(
            "  verified on all three targets",
            f"{verified} of {count}",
            "at least 22 of 25",
            verified >= _LEAST_SHARE * count,
        ),
        _none_row("  of the rest, without a stated reason", unexplained),
        _none_row("  with a layer in float for no stated reason", silent),
        _none_row("  mostly in float", floating),
    ]


def _none_row(name: str, found: Sequence[str]) -> Row:
    return Row(name, ", ".join(found) or "none", "none", not found)


def _bench_rows(bench: dict[str, Any]) -> list[Row]:
    rows = []
    for row in bench["rows"]:
        measured, _, bar = row["text"].partition(", bar ")
        bar, _, minima = bar.partition(" (of minima ")
        measured += f" (of minima {minima}" if minima else ""
        rows.append(Row(f"bench: {row['name']}", measured, bar, row["reached"]))
    return rows


def _print(where: dict[str, Any], networks: Sequence[NetworkResult], rows: Sequence[Row]) -> None:
    print(f"{where['cpu']}, {where['cores']} cores ({' '.join(where['cpu_flags'])})")
    load = f"{where['load_average_before']} before, {where['load_average_after']} after"
    print(f"load average {load}; whole run {where['seconds']:.0f} s\n")
    for line in terminal_lines(networks, _TARGETS):
        print(line)
    print()
    for row in rows:
        verdict = "pass" if row.reached else "FAIL"
        print(f"{verdict}  {row.name}: {row.measured} (bar: {row.bar})")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
