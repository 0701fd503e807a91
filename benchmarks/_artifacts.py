"""The model files that one network's run produces, and what the tables call them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model file below the working folder.

    Attributes:
        key: name in the results.
        maker: who made it, for the table.
        calibration: what it was calibrated on; ``{nncf}`` and ``{onnxruntime}`` stand for the
            numbers of real images.
        runtime: what runs it, a key of :mod:`benchmarks._runtimes`.
        file: path below the working folder.
        timed: whether its latency is measured.
    """

    key: str
    maker: str
    calibration: str
    runtime: str
    file: str
    timed: bool = False

    def calibrated_on(self, nncf_samples: int, onnxruntime_samples: int) -> str:
        """Return what it was calibrated on, with the numbers filled in."""
        return self.calibration.format(nncf=nncf_samples, onnxruntime=onnxruntime_samples)

    @property
    def executed(self) -> bool:
        """Whether its own runtime runs it."""
        return not self.runtime.endswith("-simulated")

    @property
    def quantized(self) -> bool:
        """Whether it is an integer model of a runtime that tells what it executes."""
        return self.maker != "float" and self.runtime in ("onnxruntime", "openvino")


_ORT_DATA, _NNCF_DATA = "{onnxruntime} real images", "{nncf} real images"

ARTIFACTS = (
    Artifact("float", "float", "-", "onnxruntime", "float.onnx", timed=True),
    Artifact("float_openvino", "float", "-", "openvino", "float.onnx", timed=True),
    Artifact(
        "ours_onnxruntime",
        "edgekit",
        "no data",
        "onnxruntime",
        "ours/onnxruntime/model.onnx",
        timed=True,
    ),
    Artifact(
        "ours_openvino", "edgekit", "no data", "openvino", "ours/openvino/model.xml", timed=True
    ),
    Artifact(
        "ours_tensorrt",
        "edgekit, TensorRT's form",
        "no data",
        "onnxruntime-simulated",
        "ours/tensorrt/model.onnx",
    ),
    Artifact(
        "control_onnxruntime",
        "edgekit, control",
        "64 real images",
        "onnxruntime",
        "control/onnxruntime/model.onnx",
    ),
    Artifact(
        "control_openvino",
        "edgekit, control",
        "64 real images",
        "openvino",
        "control/openvino/model.xml",
    ),
    Artifact("nncf", "NNCF", _NNCF_DATA, "openvino", "nncf.xml", timed=True),
    Artifact("nncf_noise", "NNCF", "Gaussian noise", "openvino", "nncf_noise.xml"),
    Artifact(
        "onnxruntime_full", "ORT quantizer", _ORT_DATA, "onnxruntime", "onnxruntime_full.onnx"
    ),
    Artifact(
        "onnxruntime_precise",
        "same file, x64quantprecision=1",
        _ORT_DATA,
        "onnxruntime-precise",
        "onnxruntime_full.onnx",
        timed=True,
    ),
    Artifact(
        "onnxruntime_7bit",
        "ORT quantizer, reduce_range",
        _ORT_DATA,
        "onnxruntime",
        "onnxruntime_7bit.onnx",
        timed=True,
    ),
)
