"""Model files opened as plainly as their users would: the default session, the default compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Infer = Callable[[np.ndarray], np.ndarray]
"""One input ``[1, C, H, W]`` to the first output."""

# Beside the plain runtimes: ONNX Runtime with one session entry each.
_ENTRIES = {
    # Q/DQ stay float arithmetic: runs a file that is meant for TensorRT.
    "onnxruntime-simulated": ("session.disable_quant_qdq", "1"),
    # No 16-bit pair sums: kernels that cannot saturate, at nearly the speed of float.
    "onnxruntime-precise": ("session.x64quantprecision", "1"),
}


def open_inference(runtime: str, path: str) -> Infer:
    """Open a model file.

    Args:
        runtime: ``onnxruntime``, ``openvino``, or a key of the table above.
        path: the model file.
    """
    return _openvino(path) if runtime == "openvino" else _onnxruntime(runtime, path)


def _onnxruntime(runtime: str, path: str) -> Infer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if runtime in _ENTRIES:
        options.add_session_config_entry(*_ENTRIES[runtime])
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def infer(image: np.ndarray) -> np.ndarray:
        output: np.ndarray = session.run(None, {name: image})[0]
        return output

    return infer


def _openvino(path: str) -> Infer:
    import openvino  # type: ignore[import-untyped]

    compiled: Any = openvino.Core().compile_model(path, "CPU")
    request = compiled.create_infer_request()

    def infer(image: np.ndarray) -> np.ndarray:
        output: np.ndarray = request.infer([image])[0]
        return output

    return infer
