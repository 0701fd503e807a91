"""What a result was measured with and on: versions, CPU, threads, load."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks._cases import ROOT
from benchmarks._emulation import emulated

_PACKAGES = (
    "edgekit-quant",
    "torch",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "nncf",
    "tensorrt-rtx-cu12",
    "tensorrt",
    "opencv-python",
)
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimddp")
_VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ONEDNN_MAX_CPU_ISA")


def conditions() -> dict[str, Any]:
    """Describe the machine and the software."""
    name, flags = _cpu()
    masked = emulated()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "versions": _versions(),
        "cpu": name,
        "cpu_flags": flags,
        "emulated": "avx2" if masked else None,
        "pair_sums_saturate": platform.machine() in ("x86_64", "AMD64")
        and (masked or not any(flag in flags for flag in _VNNI)),
        "cores": len(os.sched_getaffinity(0)),
        "nice": os.nice(0),
        "threads": "each runtime's default",
        "environment": {k: os.environ[k] for k in _THREAD_VARIABLES if k in os.environ},
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "load_average_before": load_average(),
    }


def load_average() -> float:
    """Return the mean number of runnable processes over the last minute."""
    return round(os.getloadavg()[0], 2)


def _cpu() -> tuple[str, list[str]]:
    name, flags = platform.processor() or platform.machine(), ""
    info = Path("/proc/cpuinfo")
    for line in info.read_text(errors="replace").splitlines() if info.exists() else ():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = value
    present = set(flags.split())
    return name, [flag for flag in _FLAGS if flag in present]


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # noqa: PERF203 - a dozen turns
            continue
    return found


def _commit() -> str | None:
    """Return the checkout's commit, marked where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return told.stdout.strip() or None
