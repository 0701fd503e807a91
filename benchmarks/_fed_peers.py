"""NNCF and ONNX Runtime's quantizer on real images, and on inputs that edgekit made."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks._cases import Case
from benchmarks._measure import edgekit_command
from benchmarks._process import StepError, run_measured, run_step

_SAMPLES = 128  # of real images, and made
_PEERS = {"nncf": ("nncf", "nncf.xml", "openvino"), "onnxruntime_full": (
    "onnxruntime_full", "onnxruntime.onnx", "onnxruntime"
)}  # fmt: skip


def fed_peers(
    case: Case, data: Path, images: int | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Return for each peer the agreement with float on either kind of calibration data, percent.

    What fails is recorded as a text in place of the figure.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        weights = _weights(case, data, folder)
        made = folder / "made.npz"
        started = time.perf_counter()
        run_measured(_synthesis(case, weights, made))
        seconds = round(time.perf_counter() - started, 1)
        floating = folder / "float.onnx"
        request = {"case": case.name, "data": str(data)}
        run_step("_reference", {**request, "weights": str(weights), "out": str(floating)})
        wanted = _predictions(request, "onnxruntime", floating, images)
        found: dict[str, Any] = {"synthesis_seconds": seconds, "samples": _SAMPLES}
        for peer, (step, file, runtime) in _PEERS.items():
            for source in ("real", "made"):
                out = folder / f"{source}_{file}"
                asked = {**request, "peer": step, "samples": _SAMPLES, "float": str(floating)}
                asked["out"] = str(out)
                if source == "made":
                    asked["inputs"] = str(made)
                try:
                    run_step("_peers", asked)
                    value: object = _agreement(wanted, _predictions(request, runtime, out, images))
                except StepError as error:
                    value = str(error)
                found[f"{peer} on {source} data"] = value
                say(f"{case.name} {peer} on {source} data: {value}")
        return found


def _weights(case: Case, data: Path, folder: Path) -> Path:
    if case.weights is not None:
        return data / case.weights
    path = folder / "weights.pt"
    run_measured([edgekit_command(), "zoo", "save", case.arch.removeprefix("zoo:"), str(path)])
    return path


def _synthesis(case: Case, weights: Path, out: Path) -> list[str]:
    stated = []
    if case.weights is not None:
        shape = "x".join(map(str, case.shape))
        stated = ["--arch", case.arch, "--input", shape, "--preprocessing", case.preprocessing]
    command = [edgekit_command(), "synthesize", str(weights), "-n", str(_SAMPLES), "-o", str(out)]
    return [*command, *stated, "--json"]


def _predictions(
    request: dict[str, str], runtime: str, path: Path, images: int | None
) -> list[int]:
    asked = {**request, "runtime": runtime, "path": str(path), "images": images, "layers": False}
    predictions: list[int] = run_step("_accuracy", asked)["predicted"]
    return predictions


def _agreement(wanted: list[int], found: list[int]) -> float:
    same = sum(a == b for a, b in zip(wanted, found, strict=True))
    return round(100 * same / len(wanted), 2)
