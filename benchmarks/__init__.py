"""Measurements of edgekit against other quantizers; see ``README.md``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# `python -m benchmarks...` puts the checkout first on the path, where the sources of edgekit would
# hide an installed wheel. Last, they serve only an editable install.
_ROOT = str(Path(__file__).resolve().parent.parent)
if sys.path and sys.path[0] in ("", _ROOT):
    sys.path.append(sys.path.pop(0))

# Read by torch's thread pool when it loads: waiting threads sleep instead of spinning, without
# which two busy processes on two cores slow one another down several times.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
