"""Latencies of EfficientNet-Lite0 on an NVIDIA GPU: torch, ONNX Runtime and TensorRT.

Where there is no GPU, or a runtime is missing, a row says ``unmeasured`` and why.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._process import StepError, run_measured
from benchmarks._record import Recording
from edgekit.bench import bench
from edgekit.bench.report import LaneResult
from edgekit.errors import EdgekitError
from edgekit.runners.gpus import list_gpus

_SCHEMA_VERSION = 1
_NETWORK = "efficientnet_lite0"
_TORCH = {
    "torch-cuda": "torch, CUDA, float32",
    "torch-cuda-compiled": "torch, CUDA, float32, compiled",
    "torch-half": "torch, CUDA, float16",
    "torch-half-compiled": "torch, CUDA, float16, compiled",
    "torch-bfloat16": "torch, CUDA, bfloat16",
}
_ARTIFACTS = {
    "onnxruntime-cuda": "ONNX Runtime, CUDA provider",
    "onnxruntime-tensorrt": "ONNX Runtime, TensorRT provider",
    "tensorrt": "TensorRT",
}
MEASURED, UNMEASURED = "measured", "unmeasured"


@dataclass(frozen=True, slots=True)
class Way:
    """How an inference is timed: copies with it or not, launched as a CUDA graph or not."""

    copies: bool
    cuda_graph: bool


_WAYS = (Way(copies=True, cuda_graph=False), Way(copies=False, cuda_graph=True))


@dataclass(frozen=True, slots=True)
class Files:
    """The network's checkpoint, and a result made from it; ``None`` where there is no GPU."""

    checkpoint: Path
    result: Path | None


def main() -> int:
    arguments = _arguments()
    recording = Recording()
    gpus, reason = _gpus()
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        try:
            files = _files(Path(folder)) if reason is None else None
        except StepError as error:
            print(error, file=sys.stderr)
            return 2
        batches = [int(text) for text in arguments.batches.split(",")]
        rows = []
        for row in _rows(files, batches, reason, arguments.blocks, arguments.seconds):
            rows.append(row)
            print(_line(row), flush=True)
    content = {"network": _NETWORK, "gpus": gpus, "rows": rows}
    recording.save(arguments.json, _SCHEMA_VERSION, content)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", default="1,32", help="sizes of a batch (default: 1,32)")
    parser.add_argument("--blocks", type=int, default=7, help="blocks of each row")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a block")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number")
    return parser.parse_args()


def _gpus() -> tuple[list[dict[str, Any]], str | None]:
    """Return the GPUs, or the reason why there is none."""
    try:
        found = list_gpus()
    except EdgekitError as error:
        return [], error.message
    told = [{"name": g.name, "compute_capability": g.compute_capability} for g in found]
    return told, None if told else "the NVIDIA driver lists no GPU"


def _files(folder: Path) -> Files:
    checkpoint, result = folder / "network.pt", folder / "result"
    run_measured(["edgekit", "zoo", "save", _NETWORK, str(checkpoint)])
    words = ["edgekit", "quantize", str(checkpoint), "--effort", "instant", "--out", str(result)]
    run_measured([*words, "--targets", "onnxruntime,tensorrt"], allowed=(0, 1))
    return Files(checkpoint, result)


def _rows(
    files: Files | None, batches: Sequence[int], reason: str | None, blocks: int, seconds: float
) -> Iterator[dict[str, Any]]:
    """Yield the rows; those of one target stand together, float before INT8."""
    for batch in batches:
        for way in _WAYS:
            for target, title in {**_TORCH, **_ARTIFACTS}.items():
                head = {
                    "target": target,
                    "title": title,
                    "batch": batch,
                    "copies": way.copies,
                    "cuda_graph": way.cuda_graph,
                }
                if files is None:
                    yield {**head, "state": UNMEASURED, "reason": reason}
                else:
                    yield from _measure(files, head, blocks, seconds)


def _measure(
    files: Files, head: dict[str, Any], blocks: int, seconds: float
) -> Iterator[dict[str, Any]]:
    path = files.checkpoint if head["target"] in _TORCH else files.result
    assert path is not None
    try:
        report = bench(
            [path],
            targets=[head["target"]],
            blocks=blocks,
            block_seconds=seconds,
            batch=head["batch"],
            copies=head["copies"],
            cuda_graph=head["cuda_graph"],
        )
    except EdgekitError as error:
        yield {**head, "state": UNMEASURED, "reason": error.message}
        return
    for result in report.lanes:
        yield {**head, "state": MEASURED, **_figures(result), "notes": list(report.notes)}


def _figures(result: LaneResult) -> dict[str, Any]:
    told = result.to_dict()
    kept = ("precision", "latency", "device_ms", "throughput_per_s", "energy", "setup", "versions")
    return {name: told[name] for name in kept}


def _line(row: dict[str, Any]) -> str:
    copies = "with copies" if row["copies"] else "without copies"
    graph = ", CUDA graph" if row["cuda_graph"] else ""
    head = f"{row['title']}, batch {row['batch']}, {copies}{graph}"
    if row["state"] == UNMEASURED:
        return f"{head}: unmeasured: {row['reason']}"
    p50, device = row["latency"]["p50_ms"], row["device_ms"]
    own = "" if device is None else f", the GPU itself {device['value']:.4g} ms"
    return f"{head}, {row['precision']}: p50 {p50['value']:.4g} ms{own}"


if __name__ == "__main__":
    sys.exit(main())
