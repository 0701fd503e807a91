"""Runs edgekit on files that strangers could send and counts what went wrong.

    python -m benchmarks.hostile_files

The files are the data of the tests (``tests/hostile``): pickles in every container and in every
member of a ``.pt2``, programs and TorchScript with code in their texts, archives that lie, absurd
sizes, and checkpoints, recipes and manifests that name code. First each file is opened as careless
code would open it, to show that it is dangerous; then edgekit's command line is run on it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

_TESTS = Path(__file__).resolve().parent.parent / "tests"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every case; 0 if nothing ran and nothing crashed and each file was refused."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hostile_files", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    os.environ["CI"] = "true"  # where this is set, packages report no usage in a process of theirs
    sys.path.insert(0, str(_TESTS))
    from hostile import CASES, prove, run

    started = time.perf_counter()
    proven, rows = 0, []
    for case in CASES:
        with tempfile.TemporaryDirectory(prefix="edgekit-") as first:
            dangerous = case.proof is not None and prove(case, Path(first))
        with tempfile.TemporaryDirectory(prefix="edgekit-") as second:
            outcome = run(case, Path(second))
        refused = outcome.code == 2 and outcome.error.get("code") in case.codes
        proven += dangerous
        rows.append(
            {
                "file": case.name,
                "runs_when_opened_carelessly": dangerous,
                "executed": outcome.executed,
                "traceback": outcome.traceback,
                "refused": refused,
                "error": outcome.error.get("code"),
                "message": outcome.error.get("message"),
            }
        )
    executed = sum(bool(row["executed"]) for row in rows)
    tracebacks = sum(bool(row["traceback"]) for row in rows)
    accepted = [row["file"] for row in rows if not row["refused"]]
    if options.json:
        document = {"executed": executed, "tracebacks": tracebacks, "files": rows}
        print(json.dumps(document, indent=2))
    else:
        print(f"executed {executed}, tracebacks {tracebacks} of {len(rows)}")
        print(
            f"{len(rows) - len(accepted)} refused; {proven} were shown to run a command when "
            f"opened carelessly; {time.perf_counter() - started:.0f} s"
        )
        for name in accepted:
            print(f"NOT REFUSED: {name}")
    return int(bool(executed or tracebacks or accepted))


if __name__ == "__main__":
    sys.exit(main())
