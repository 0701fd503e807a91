"""How often `edgekit regress` errs: false alarms on equal artifacts, and slowdowns that it misses.

    python -m benchmarks.regression_gate --json benchmarks/results/regression_gate.json

Live trials run the gate on two copies of a network beside a noisy process, head slowed down inside
its worker in half of them. Then trials are resampled from the recorded rounds of equal artifacts.
The file is read first where it exists, and written after each trial: an interrupted benchmark goes
on, and `--at-most N` runs it in parts. Exit code 0: both bars are reached.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks._cases import ROOT
from benchmarks._conditions import conditions, load_average
from benchmarks._gate_trials import (
    Trial,
    live_trial,
    resampled_verdicts,
    stored_baseline_alarms,
)
from benchmarks._noise import noise
from benchmarks._rates import rate_interval
from benchmarks.bench_overhead import _network
from edgekit.regress.settings import Settings

_LIVE_BUDGET_S, _BUDGET_S = 20.0, 60.0
_FALSE_ALARMS, _FOUND, _SLOWED_BY = 0.01, 0.95, 0.1
_CYCLE = (0.0, 0.1, 0.0, 0.05, 0.0, 0.1, 0.0, 0.2)
"""Half of the live trials are of equal artifacts, from whose rounds others are resampled."""
_SCENARIOS = ((0.0, 20.0), (0.0, 60.0), (0.05, 60.0), (0.1, 20.0), (0.1, 60.0), (0.2, 60.0))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 both bars reached, 1 one missed, 2 not enough trials yet."""
    options = _parse(arguments)
    # The slowed worker is a module of this package, and a worker runs in a folder of its own.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    document = _read(options)
    trials = [Trial(**trial) for trial in document["trials"]]
    missing = min(max(options.trials - len(trials), 0), options.at_most)
    if missing > 0:
        _run_live(options, document, trials, missing)
    if sum(not trial.slowed_by for trial in trials) < 2:
        print("at least two trials of equal artifacts are needed to resample")
        return 2
    document["rows"] = [*_live_rows(trials), *_resampled_rows(trials, options.resampled)]
    alarms, total = stored_baseline_alarms(trials, Settings().tolerance)
    document["stored_baseline"] = {"alarms": alarms, "of": total, "rate": alarms / total}
    _save(options.json, document)
    return _print(document, len(trials), options.trials)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.regression_gate", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--trials", type=int, default=60, help="live trials in all (default 60)")
    parser.add_argument("--at-most", type=int, default=10**6, help="live trials in this run")
    parser.add_argument("--resampled", type=int, default=2000, help="of each kind (default 2000)")
    parser.add_argument("--threads", type=int, default=1, help="of the runtime; 0: its own choice")
    parser.add_argument("--quiet", action="store_true", help="without the noisy process")
    parser.add_argument("--json", type=Path, metavar="FILE", help="read, extend and write")
    return parser.parse_args(arguments)


def _read(options: argparse.Namespace) -> dict[str, Any]:
    """Return what was recorded so far, with the same settings."""
    settings = {"threads": options.threads, "noise": not options.quiet}
    if options.json is None or not options.json.exists():
        return {"settings": settings, "conditions": [], "trials": []}
    document: dict[str, Any] = json.loads(options.json.read_text(encoding="utf-8"))
    if document["settings"] != settings:
        raise SystemExit(f"{options.json}: recorded with {document['settings']}, not {settings}")
    return document


def _run_live(
    options: argparse.Namespace, document: dict[str, Any], trials: list[Trial], count: int
) -> None:
    settings = Settings(budget_s=_LIVE_BUDGET_S, threads=options.threads or None)
    document["conditions"].append(where := conditions())
    with tempfile.TemporaryDirectory(prefix="edgekit-benchmark-") as name:
        base, head = Path(name) / "base.onnx", Path(name) / "head.onnx"
        shutil.copy(_network(base), head)
        with nullcontext() if options.quiet else noise():
            for number in range(len(trials), len(trials) + count):
                slowed_by = _CYCLE[number % len(_CYCLE)]
                trial = live_trial(base, head, slowed_by, settings, seed=number)
                trials.append(trial)
                document["trials"].append(trial.to_dict())
                where["load_average_after"] = load_average()
                _save(options.json, document)
                print(
                    f"trial {number + 1}: slowed by {slowed_by:.0%}: {trial.verdict} "
                    f"({trial.ratio:.3f}, {len(trial.rounds)} rounds, {trial.seconds:.0f} s)",
                    file=sys.stderr,
                    flush=True,
                )


def _live_rows(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    kinds = sorted({trial.slowed_by for trial in trials})
    return [
        _row(
            "live",
            kind,
            _LIVE_BUDGET_S,
            [(t.verdict, t.seconds) for t in trials if t.slowed_by == kind],
        )
        for kind in kinds
    ]


def _resampled_rows(trials: Sequence[Trial], count: int) -> list[dict[str, Any]]:
    rows = []
    for slowed_by, budget_s in _SCENARIOS:
        found = resampled_verdicts(trials, slowed_by, Settings(budget_s=budget_s), count)
        rows.append(_row("resampled", slowed_by, budget_s, list(found)))
    return rows


def _row(
    how: str, slowed_by: float, budget_s: float, found: Sequence[tuple[str, float]]
) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for verdict, _ in found:
        counts[verdict] = counts.get(verdict, 0) + 1
    alarms = counts.get("regression", 0)
    low, high = rate_interval(alarms, len(found))
    return {
        "how": how,
        "slowed_by": slowed_by,
        "budget_s": budget_s,
        "trials": len(found),
        "verdicts": counts,
        "regression_rate": {"value": alarms / len(found), "low": low, "high": high},
        "mean_seconds": round(sum(seconds for _, seconds in found) / len(found), 1),
    }


def _print(document: dict[str, Any], done: int, wanted: int) -> int:
    for row in document["rows"]:
        rate = row["regression_rate"]
        print(
            f"{row['how']:9} slowed by {row['slowed_by']:4.0%}, {row['budget_s']:.0f} s: "
            f"regression in {rate['value']:.2%} [{rate['low']:.2%}, {rate['high']:.2%}] of "
            f"{row['trials']} trials; {row['verdicts']}, {row['mean_seconds']} s on average"
        )
    stored = document["stored_baseline"]
    print(
        f"a 5 % gate on a latency of another run: alarms in {stored['rate']:.1%} of {stored['of']}"
    )
    alarms, found = (_rate(document, slowed_by)["value"] for slowed_by in (0.0, _SLOWED_BY))
    reached = (alarms <= _FALSE_ALARMS, found >= _FOUND)
    print(f"{'pass' if reached[0] else 'FAIL'}  false alarms {alarms:.2%}, bar {_FALSE_ALARMS:.0%}")
    print(f"{'pass' if reached[1] else 'FAIL'}  10 % found in {found:.2%}, bar {_FOUND:.0%}")
    if done < wanted:
        print(f"{done} of {wanted} live trials: run it again to go on")
        return 2
    return 0 if all(reached) else 1


def _rate(document: dict[str, Any], slowed_by: float) -> dict[str, float]:
    rate: dict[str, float] = next(
        row["regression_rate"]
        for row in document["rows"]
        if (row["how"], row["slowed_by"], row["budget_s"]) == ("resampled", slowed_by, _BUDGET_S)
    )
    return rate


def _save(path: Path | None, document: dict[str, Any]) -> None:
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    trials = ",\n  ".join(json.dumps(trial) for trial in document["trials"])
    rest = json.dumps({**document, "trials": []}, indent=1)
    # A line for each trial: with one for each number there would be thousands.
    text = rest.replace('"trials": []', f'"trials": [\n  {trials}\n ]')
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())
