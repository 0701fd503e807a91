"""The tables that say what exists. They hold strings, so listing costs no import."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from edgekit.errors import ConfigError

MODELS: Mapping[str, str] = {
    "efficientnet_lite0": "edgekit.models.efficientnet_lite:EFFICIENTNET_LITE0",
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
