"""The table of the main job: edgekit against NNCF and ONNX Runtime's quantizer, in one run.

    python -m benchmarks.main_job

``benchmarks/README.md`` says what each figure is.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks._artifacts import ARTIFACTS
from benchmarks._cases import CASES, DATA_VARIABLE, DataError, find_data
from benchmarks._conditions import conditions, load_average
from benchmarks._emulation import EmulationError, emulated, run_below_mask
from benchmarks._judge import FAIL, MISSING, RESOURCES, judge, judge_help, ratios, scores
from benchmarks._measure import Measurement, Plan, edgekit_command
from benchmarks._process import StepError, best_seconds
from benchmarks._table import print_conditions, print_failures, print_rows, print_scores

_HELP_RUNS = 5
_SCHEMA = 1
_USER_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 all bars reached, 1 a bar missed, 2 it cannot run."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = _parse(given)
    names = list(CASES) if options.networks == "all" else options.networks.split(",")
    try:
        unknown = sorted(set(names) - set(CASES))
        if unknown:
            raise DataError(f"unknown network {', '.join(unknown)}; known: {', '.join(CASES)}")
        data = find_data(names)
        edgekit_command()
        if options.emulate_avx2 and not emulated():
            return run_below_mask(given)
    except (DataError, EmulationError, StepError) as error:
        _say(str(error))
        return _USER_ERROR
    return _run(options, names, data)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.main_job", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--networks", default="all", help=f"of {', '.join(CASES)}; default: all")
    add("--effort", choices=sorted(RESOURCES), default="standard", help="of edgekit's calibration")
    add("--images", type=int, help="evaluation images of each network; default: all")
    add("--blocks", type=int, default=9, help="latency blocks of each artifact (default 9)")
    add("--skip-latency", action="store_true", help="leave the latencies out")
    add("--quick", action="store_true", help="few images and blocks: does it run, not how well")
    add("--emulate-avx2", action="store_true", help="hide AVX-512 and VNNI (Linux, C compiler)")
    add("--json", type=Path, metavar="FILE", help="write everything that was measured")
    add("--keep", type=Path, metavar="DIR", help="keep the model files there")
    parser.epilog = f"The evaluation data is found through {DATA_VARIABLE}."
    return parser.parse_args(arguments)


def _plan(options: argparse.Namespace, data: Path) -> Plan:
    blocks = 0 if options.skip_latency else options.blocks
    if options.quick:
        return Plan(data, options.images or 50, 32, 32, min(blocks, 3), options.effort)
    return Plan(data, options.images, 250, 128, blocks, options.effort)


def _run(options: argparse.Namespace, names: Sequence[str], data: Path) -> int:
    started = time.perf_counter()
    plan = _plan(options, data)
    where = conditions()
    help_seconds = _help_seconds()
    results: dict[str, Any] = {}
    with _workplace(options.keep) as folder:
        for name in names:
            below = folder / name
            below.mkdir(parents=True)
            results[name] = Measurement(CASES[name], plan, below, _progress(started, name)).run()
    where["load_average_after"] = load_average()
    where["seconds"] = round(time.perf_counter() - started, 1)
    where["quick"] = options.quick
    where["effort"] = options.effort
    rows = [row for name in names for row in judge(CASES[name], results[name], options.effort)]
    rows.append(judge_help(help_seconds))
    print_conditions(where)
    for name in names:
        print_scores(CASES[name], plan, scores(results[name]))
        print_failures(CASES[name], results[name]["failures"])
    print_rows(rows)
    if options.json is not None:
        document = {
            "schema_version": _SCHEMA,
            "conditions": where,
            "help_seconds": help_seconds,
            "rows": [row.to_dict() for row in rows],
            "networks": {name: _document(plan, results[name]) for name in names},
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 1 if any(row.judged and row.verdict in (FAIL, MISSING) for row in rows) else 0


def _document(plan: Plan, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is recorded of one network: figures in place of the single predictions."""
    found = scores(result)
    accuracy = {
        artifact.key: {
            "maker": artifact.maker,
            "calibration": artifact.calibrated_on(plan.nncf_samples, plan.onnxruntime_samples),
            "runtime": artifact.runtime,
            "executed": artifact.executed,
            "size_bytes": result["accuracy"][artifact.key]["size_bytes"],
            **found[artifact.key].to_dict(),
        }
        for artifact in ARTIFACTS
        if artifact.key in found
    }
    compared = {f"{a}/{b}": value.to_dict() for (a, b), value in ratios(result).items()}
    return {**result, "accuracy": accuracy, "ratios": compared}


def _help_seconds() -> float | None:
    try:
        return best_seconds([edgekit_command(), "--help"], _HELP_RUNS)
    except StepError as error:
        _say(str(error))
        return None


@contextmanager
def _workplace(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="edgekit-benchmark-") as name:
        yield Path(name)


def _progress(started: float, network: str) -> Any:
    return lambda text: _say(f"[{time.perf_counter() - started:6.1f} s] {network}: {text}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
