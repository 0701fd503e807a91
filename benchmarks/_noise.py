"""A process that disturbs: busy and idle for random times, in arithmetic and in memory."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks._cases import ROOT

_MEAN_S = 0.5  # of a busy or an idle time; exponential, so that some are long
_LONGEST_S = 3600.0


@contextmanager
def noise() -> Iterator[None]:
    """Keep a noisy process beside what runs inside."""
    command = [sys.executable, "-m", "benchmarks._noise", str(os.getpid())]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main(parent: int) -> None:
    """Disturb until the parent is gone."""
    import numpy as np

    draw, data = random.Random(0), np.random.default_rng(0).standard_normal(1 << 22)
    end = time.monotonic() + _LONGEST_S
    while os.getppid() == parent and time.monotonic() < end:
        busy = time.monotonic() + draw.expovariate(1 / _MEAN_S)
        while time.monotonic() < busy:
            data = np.sqrt(data * data + 1e-9)  # 32 MB each: beyond most caches
        time.sleep(draw.expovariate(1 / _MEAN_S))


if __name__ == "__main__":
    main(int(sys.argv[1]))
