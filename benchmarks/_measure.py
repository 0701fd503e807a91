"""Everything that is measured of one network, as plain JSON values."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

from benchmarks._artifacts import ARTIFACTS, Artifact
from benchmarks._cases import ROOT, Case
from benchmarks._interleaved import Lane, measure_lanes
from benchmarks._process import StepError, run_measured, run_step

JUDGED_CORES = 2  # the wall time of the table is that of two cores
_CONTROL_SAMPLES = 64  # what edgekit reads of a folder
_LEAST_BLOCKS = 3
_FLOAT = "float.onnx"
Progress = Callable[[str], None]
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure.

    Attributes:
        data: evaluation data.
        images: evaluation images; all if ``None``.
        nncf_samples: real images for NNCF.
        onnxruntime_samples: real images for ONNX Runtime's quantizer.
        blocks: latency blocks of each artifact; 0 for none.
        effort: of edgekit's calibration.
    """

    data: Path
    images: int | None
    nncf_samples: int
    onnxruntime_samples: int
    blocks: int
    effort: str


def edgekit_command() -> str:
    """Return the installed command: the one beside this interpreter, else the one on the path.

    Raises:
        StepError: it is not installed.
    """
    beside = Path(sys.executable).with_name("edgekit")
    found = str(beside) if beside.exists() else shutil.which("edgekit")
    if found is None:
        raise StepError("the command 'edgekit' is not installed; run: pip install -e '.[all]'")
    return found


class Measurement:
    """One network on its way through the benchmark; what fails is noted, the rest goes on."""

    def __init__(self, case: Case, plan: Plan, folder: Path, progress: Progress) -> None:
        self._case = case
        self._plan = plan
        self._folder = folder
        self._say = progress
        self._failures: dict[str, str] = {}
        self._seconds: dict[str, float] = {}

    def run(self) -> dict[str, Any]:
        """Measure all; what failed is ``None``, its reason under ``failures``."""
        weights = self._weights()
        quantize = self._part("edgekit quantize", lambda: self._ours(weights))
        self._part("edgekit quantize on real images", lambda: self._control(weights))
        floating = self._path(_FLOAT)
        self._part(
            "float network for the peers",
            lambda: self._step("_reference", weights=weights, out=floating),
        )
        peers = self._peers()
        present = [a for a in ARTIFACTS if self._path(a.file).exists()]
        return {
            "quantize": quantize,
            "peers": peers,
            "accuracy": {
                a.key: self._part(f"accuracy of {a.key}", partial(self._accuracy, a))
                for a in present
            },
            "tensorrt": {
                "ours": self._engines("ours/tensorrt/model.onnx"),
                "onnxruntime_default": self._engines("onnxruntime_default.onnx"),
            },
            "latency": self._latency([a for a in present if a.timed]),
            "failures": self._failures,
            "seconds": self._seconds,
        }

    def _path(self, name: str) -> Path:
        return self._folder / name

    def _part(self, name: str, work: Callable[[], Result]) -> Result | None:
        """Do and time a part of the run; note its failure."""
        self._say(name)
        started = perf_counter()
        try:
            return work()
        except StepError as error:
            # Recorded results must not name folders of this machine.
            message = str(error)
            for folder in (self._folder, self._plan.data, ROOT):
                message = message.replace(str(folder), folder.name)
            self._failures[name] = message
            self._say(f"  failed: {message}")
            return None
        finally:
            self._seconds[name] = round(perf_counter() - started, 2)

    def _step(self, module: str, **request: Any) -> dict[str, Any]:
        plain = {k: str(v) if isinstance(v, Path) else v for k, v in request.items()}
        return run_step(module, {"case": self._case.name, "data": str(self._plan.data), **plain})

    def _weights(self) -> Path:
        if self._case.weights is not None:
            return self._plan.data / self._case.weights
        path = self._path("weights.pt")
        name = self._case.arch.removeprefix("zoo:")
        command = [edgekit_command(), "zoo", "save", name, str(path)]
        self._part("save the zoo's weights", lambda: run_measured(command))
        return path

    def _ours(self, weights: Path) -> dict[str, Any]:
        """Run the main job; what it takes is measured from outside."""
        command = [edgekit_command(), *self._quantize(weights, "ours")]
        usage = run_measured(command, cores=JUDGED_CORES, allowed=(0, 1))
        report = json.loads(self._path("ours/report.json").read_text(encoding="utf-8"))
        return {"usage": usage.to_dict(), "report": _summary(report)}

    def _control(self, weights: Path) -> None:
        """Run edgekit on real images: what data would add."""
        folder = self._plan.data / self._case.images
        if not folder.is_dir():
            folder = self._path("images")
            self._step("_images", count=_CONTROL_SAMPLES, out=folder)
        options = ["--calibration", f"images:{folder}", "--targets", "onnxruntime,openvino"]
        command = [edgekit_command(), *self._quantize(weights, "control"), *options]
        run_measured(command, allowed=(0, 1))

    def _quantize(self, weights: Path, out: str) -> list[str]:
        stated = []
        if self._case.weights is not None:
            shape = "x".join(map(str, self._case.shape))
            stated = ["--arch", self._case.arch, "--input", shape]
            stated += ["--preprocessing", self._case.preprocessing]
        stated += ["--effort", self._plan.effort]
        return ["quantize", str(weights), *stated, "--out", str(self._path(out)), "--json"]

    def _peer(self, name: str, samples: int, file: str) -> dict[str, Any]:
        floating, out = self._path(_FLOAT), self._path(file)
        told = self._step("_peers", peer=name, samples=samples, float=floating, out=out)
        return {"samples": samples, **told}

    def _peers(self) -> dict[str, Any]:
        nncf, onnxruntime = self._plan.nncf_samples, self._plan.onnxruntime_samples
        peers = (
            ("nncf", nncf, "nncf.xml"),
            ("nncf_noise", nncf, "nncf_noise.xml"),
            ("onnxruntime_full", onnxruntime, "onnxruntime_full.onnx"),
            ("onnxruntime_7bit", onnxruntime, "onnxruntime_7bit.onnx"),
            ("onnxruntime_default", 2, "onnxruntime_default.onnx"),  # only its form matters
        )
        return {
            name: self._part(f"peer {name}", partial(self._peer, name, samples, file))
            for name, samples, file in peers
        }

    def _accuracy(self, artifact: Artifact) -> dict[str, Any]:
        return self._step(
            "_accuracy",
            runtime=artifact.runtime,
            path=self._path(artifact.file),
            images=self._plan.images,
            layers=artifact.quantized,
        )

    def _engines(self, file: str) -> dict[str, Any] | None:
        path = self._path(file)
        if not path.exists():
            return None
        return self._part(f"TensorRT engines of {file}", lambda: self._step("_tensorrt", path=path))

    def _latency(self, artifacts: list[Artifact]) -> dict[str, Any] | None:
        blocks = self._plan.blocks
        if blocks == 0:
            return None
        if not self._case.judged:
            blocks = max(_LEAST_BLOCKS, blocks // 2)  # no verdict hangs on it
        lanes = {a.key: Lane(a.runtime, str(self._path(a.file))) for a in artifacts}
        request = {"case": self._case.name, "data": str(self._plan.data)}
        return self._part("latency", lambda: measure_lanes(lanes, request, blocks, self._say))


def _summary(report: Mapping[str, Any]) -> dict[str, Any]:
    """Keep of edgekit's own report what the table needs."""
    kept = ("status", "failure", "executed", "float_layers", "match", "size_bytes")
    return {
        "seconds": report["seconds"],
        "targets": {
            name: {key: target.get(key) for key in kept}
            for name, target in report["targets"].items()
        },
    }
