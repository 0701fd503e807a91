"""NNCF and ONNX Runtime's quantizer as engines: on real images, and on inputs that edgekit made."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._cases import Case
from benchmarks._measure import edgekit_command
from benchmarks._process import StepError, run_measured, run_step

_SAMPLES = 128  # of real images, and made
_OURS = " on our set"


@dataclass(frozen=True, slots=True)
class _Peer:
    """A quantizer: its step, the file that it writes, and the runtime of that."""

    step: str
    file: str
    runtime: str


_PEERS = {
    "nncf": _Peer("nncf", "nncf.xml", "openvino"),
    "onnxruntime quantizer": _Peer("onnxruntime_full", "onnxruntime.onnx", "onnxruntime"),
}
PEER_ENGINES = tuple(f"{name}{data}" for name in _PEERS for data in (_OURS, ""))
"""Names as engines; without "on our set" a peer takes real images."""


@dataclass(frozen=True)
class PeerResult:
    """What one peer made of a network.

    Attributes:
        engine: one of :data:`PEER_ENGINES`.
        target: runtime that executed it.
        seconds: time of its calibration and quantization, and of making our set where it took that.
        outputs: first output for every image, ``[N, K]``; ``None`` where it failed.
        failure: why.
    """

    engine: str
    target: str
    seconds: float
    outputs: np.ndarray | None
    failure: str = ""


def fed_peers(
    case: Case, data: Path, images: int | None, engines: Sequence[str], made: Path | None = None
) -> Iterator[PeerResult]:
    """Quantize a network with peers, and execute what they wrote on the evaluation images.

    Args:
        case: the network.
        data: folder of the evaluation data.
        images: how many evaluation images.
        engines: of :data:`PEER_ENGINES`.
        made: file of ``edgekit synthesize`` to take as our set, instead of making one.

    Raises:
        StepError: our set cannot be made, or the float network not be exported.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-benchmark-") as scratch:
        folder = Path(scratch)
        weights = weights_file(case, data, folder)
        seconds = 0.0
        if made is None and any(engine.endswith(_OURS) for engine in engines):
            made, seconds = synthesized(case, weights, folder)
        floating = folder / "float.onnx"
        request = {"case": case.name, "data": str(data)}
        run_step("_reference", {**request, "weights": str(weights), "out": str(floating)})
        request["float"] = str(floating)
        for engine in engines:
            own = made if engine.endswith(_OURS) else None
            result = _result(request, engine, own, images, folder)
            yield PeerResult(
                engine,
                result.target,
                round(result.seconds + (seconds if own is not None else 0.0), 1),
                result.outputs,
                result.failure,
            )


def weights_file(case: Case, data: Path, folder: Path) -> Path:
    """Return the file of a case's weights; those of the zoo are written into ``folder``."""
    if case.weights is not None:
        return data / case.weights
    path = folder / "weights.pt"
    run_measured([edgekit_command(), "zoo", "save", case.arch.removeprefix("zoo:"), str(path)])
    return path


def synthesized(case: Case, weights: Path, folder: Path) -> tuple[Path, float]:
    """Let ``edgekit synthesize`` make a set; return its file and the seconds that it took."""
    out, stated = folder / "made.npz", []
    if case.weights is not None:
        shape = "x".join(map(str, case.shape))
        stated = ["--arch", case.arch, "--input", shape, "--preprocessing", case.preprocessing]
    command = [edgekit_command(), "synthesize", str(weights), "-n", str(_SAMPLES), "-o", str(out)]
    usage = run_measured([*command, *stated, "--json"])
    return out, usage.seconds


def _result(
    request: dict[str, str], engine: str, made: Path | None, images: int | None, folder: Path
) -> PeerResult:
    peer = _PEERS[engine.removesuffix(_OURS)]
    out = folder / f"{'made' if made else 'real'}_{peer.file}"
    asked: dict[str, Any] = {**request, "peer": peer.step, "samples": _SAMPLES, "out": str(out)}
    if made is not None:
        asked["inputs"] = str(made)
    started = time.perf_counter()
    try:
        seconds = run_step("_peers", asked)["seconds"]
        outputs = _outputs(request, peer.runtime, out, images)
    except StepError as error:
        message = str(error).replace(str(folder), folder.name)
        return PeerResult(engine, peer.runtime, time.perf_counter() - started, None, message)
    return PeerResult(engine, peer.runtime, seconds, outputs)


def _outputs(request: dict[str, str], runtime: str, path: Path, images: int | None) -> np.ndarray:
    file = path.with_suffix(".npy")
    asked = {**request, "runtime": runtime, "path": str(path), "images": images, "layers": False}
    run_step("_accuracy", {**asked, "outputs": str(file)})
    outputs: np.ndarray = np.load(file, allow_pickle=False)
    return outputs
