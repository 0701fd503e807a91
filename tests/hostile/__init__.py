"""Files that strangers could send, as data: a test and a benchmark run every one of them."""

from __future__ import annotations

from hostile.archives import ARCHIVES
from hostile.case import Case, Outcome, prove, run
from hostile.documents import DOCUMENTS
from hostile.pickles import PICKLES
from hostile.programs import PROGRAMS
from hostile.shapes import SHAPES

CASES: tuple[Case, ...] = (*PICKLES, *PROGRAMS, *ARCHIVES, *SHAPES, *DOCUMENTS)

__all__ = ["CASES", "Case", "Outcome", "prove", "run"]
