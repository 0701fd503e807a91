"""Runs the whole benchmark again as if the CPU had AVX2 and nothing newer (``mask_cpuid.c``)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks._cases import ROOT

_VARIABLE = "EDGEKIT_BENCHMARK_MASK"  # path of the library in the process that runs below it
_SOURCE = Path(__file__).with_name("mask_cpuid.c")
_PROBE = "import ctypes, sys; sys.exit(0 if ctypes.CDLL(sys.argv[1]).mask_cpuid_active() else 3)"


class EmulationError(Exception):
    """This machine cannot hide its instruction sets."""


def emulated() -> bool:
    """Whether this process runs below the mask."""
    return _VARIABLE in os.environ


def run_below_mask(arguments: Sequence[str]) -> int:
    """Compile the mask, check that it works, and run the benchmark below it.

    Args:
        arguments: of the benchmark.

    Returns:
        Exit code of that run.

    Raises:
        EmulationError: no compiler, no CPUID faulting, or another system.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-benchmark-") as folder:
        library = Path(folder) / "mask_cpuid.so"
        _compile(library)
        preload = f"{library} {os.environ.get('LD_PRELOAD', '')}".strip()
        environment = {**os.environ, "LD_PRELOAD": preload, _VARIABLE: str(library)}
        probe = [sys.executable, "-c", _PROBE, str(library)]
        if subprocess.run(probe, env=environment, check=False).returncode != 0:
            raise EmulationError(
                "--emulate-avx2: CPUID cannot be masked here; the CPU and the kernel must support "
                "CPUID faulting (flag 'cpuid_fault' in /proc/cpuinfo)"
            )
        command = [sys.executable, "-m", "benchmarks.main_job", *arguments]
        return subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode


def _compile(library: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or not sys.platform.startswith("linux"):
        raise EmulationError("--emulate-avx2 needs Linux and a C compiler (cc, gcc or clang)")
    flags = ["-O2", "-shared", "-fPIC", "-Wl,-z,initfirst"]
    command = [compiler, *flags, str(_SOURCE), "-o", str(library), "-ldl"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode != 0:
        raise EmulationError(f"--emulate-avx2: {_SOURCE.name} does not compile: {built.stderr}")
