"""Files that strangers could send: nothing in them runs, and each is refused by name."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the host part needs the extra 'torch'")

sys.path.insert(0, str(Path(__file__).parent))
try:
    from hostile import CASES, Case, prove, run
finally:
    sys.path.pop(0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.filterwarnings("ignore")
def test_nothing_runs_and_the_file_is_refused(case: Case, tmp_path: Path) -> None:
    outcome = run(case, tmp_path)
    assert not outcome.executed
    assert not outcome.traceback, outcome.output
    assert outcome.code == 2, outcome.output
    assert outcome.left == ()
    assert outcome.error["code"] in case.codes
    assert re.search(case.said, outcome.error["message"])
    assert outcome.error["message"].isprintable()
    assert outcome.error["hint"].isprintable()


@pytest.mark.parametrize("case", [case for case in CASES if case.proof], ids=lambda case: case.name)
@pytest.mark.filterwarnings("ignore")
def test_the_file_is_dangerous(case: Case, tmp_path: Path) -> None:
    # Without this, a payload that does nothing would pass the test above.
    assert prove(case, tmp_path)


def test_there_are_enough_of_them() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert len(names) >= 30
