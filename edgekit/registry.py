"""The tables that say what exists. They hold strings, so listing costs no import."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from edgekit.errors import ConfigError

MODELS: Mapping[str, str] = {
    "dcap": "edgekit.models.dcap:DCAP",
    "dcap_small": "edgekit.models.dcap:DCAP_SMALL",
    "efficientnet_lite0": "edgekit.models.efficientnet_lite:EFFICIENTNET_LITE0",
    "fcl_gan": "edgekit.models.fcl_gan:FCL_GAN",
    "fcl_gan_small": "edgekit.models.fcl_gan:FCL_GAN_SMALL",
}
# How the networks of the zoo are trained; those without an entry come trained or not at all.
TRAINERS: Mapping[str, str] = {
    "dcap": "edgekit.training.few_shot:few_shot_training",
    "dcap_small": "edgekit.training.few_shot:few_shot_training",
    "fcl_gan": "edgekit.training.restoration:restoration_training",
    "fcl_gan_small": "edgekit.training.restoration:restoration_training",
}
CALIBRATIONS: Mapping[str, str] = {
    "renorm": "edgekit.calibration.renorm:Renorm",
    "noise": "edgekit.calibration.noise:GaussianNoise",
    "images": "edgekit.calibration.images:ImageFolder",
}
SYNTHESIZERS: Mapping[str, str] = {
    "distill": "edgekit.calibration.distill:Distill",
    "clusterq": "edgekit.calibration.clusterq:ClusterQ",
}
TARGETS: Mapping[str, str] = {
    "onnxruntime": "edgekit.exporters.onnxruntime:OnnxRuntimeTarget",
    "openvino": "edgekit.exporters.openvino:OpenVinoTarget",
    "tensorrt": "edgekit.exporters.tensorrt:TensorRtTarget",
    "simulation": "edgekit.exporters.simulation:SimulationTarget",
}
REFERENCES: Mapping[str, str] = {
    "onnx": "edgekit.exporters._qdq:realize_float",
}
# The targets that a runtime executes. What no runtime executes has no runner, and no latency.
RUNNERS: Mapping[str, str] = {
    "onnxruntime": "edgekit.runners.onnxruntime:OnnxRuntimeRunner",
    "openvino": "edgekit.runners.openvino:OpenVinoRunner",
    "tensorrt": "edgekit.runners.tensorrt:TensorRtRunner",
}
# Other ways to run the same files, for benchmarks: another provider or device of a runtime, or
# torch, which runs the float network itself. They are chosen by name, never by default.
VARIANTS: Mapping[str, str] = {
    "onnxruntime-cuda": "edgekit.runners.onnxruntime_gpu:CudaRunner",
    "onnxruntime-tensorrt": "edgekit.runners.onnxruntime_gpu:TensorRtProviderRunner",
    "openvino-gpu": "edgekit.runners.openvino_gpu:OpenVinoGpuRunner",
    "torch": "edgekit.torch_runner:TorchRunner",
    "torch-compiled": "edgekit.torch_runner:CompiledRunner",
    "torch-cuda": "edgekit.torch_runner:CudaRunner",
    "torch-cuda-compiled": "edgekit.torch_runner:CompiledCudaRunner",
    "torch-half": "edgekit.torch_runner:HalfRunner",
    "torch-half-compiled": "edgekit.torch_runner:CompiledHalfRunner",
    "torch-bfloat16": "edgekit.torch_runner:BFloat16Runner",
}
# The target whose artifact a variant opens; those without an entry know the float network only.
ARTIFACT_OF: Mapping[str, str] = {
    "onnxruntime-cuda": "onnxruntime",
    "onnxruntime-tensorrt": "tensorrt",
    "openvino-gpu": "openvino",
}
# What turns a target's file into one for the GPU of this machine, on the device itself.
BUILDERS: Mapping[str, str] = {
    "tensorrt": "edgekit.exporters._tensorrt_here:build_here",
}


def resolve(table: Mapping[str, str], name: str, what: str) -> Any:
    """Import and return the object that ``table`` names for ``name``.

    Args:
        table: one of the tables above.
        name: the key that the user gave.
        what: the kind of thing, for the error message (``"target"``).

    Raises:
        ConfigError: ``name`` is not in the table.
    """
    if name not in table:
        raise ConfigError(f"unknown {what} '{name}'", f"known: {', '.join(table)}")
    module, attribute = table[name].split(":")
    return getattr(importlib.import_module(module), attribute)
