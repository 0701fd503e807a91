"""Step: the quantizers that edgekit is compared with, each used as its documentation says."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks._images import image_set
from benchmarks._process import answer

_NOISE_SEED = 0


def nncf(request: dict[str, Any]) -> None:
    """NNCF's default post-training quantization of the OpenVINO model, on real images."""
    images = _calibration_images(request)
    _nncf(request, [images.input(index) for index in range(len(images))])


def nncf_noise(request: dict[str, Any]) -> None:
    """NNCF in the same way on Gaussian noise: what a user without data might try."""
    shape = image_set(request, 1).input(0).shape
    generator = np.random.default_rng(_NOISE_SEED)
    noise = (generator.standard_normal(shape, np.float32) for _ in range(request["samples"]))
    _nncf(request, list(noise))


def onnxruntime_full(request: dict[str, Any]) -> None:
    """ONNX Runtime's static quantizer: uint8 activations, int8 weights for each channel."""
    _onnxruntime(request, reduce_range=False)


def onnxruntime_7bit(request: dict[str, Any]) -> None:
    """The same with 7-bit weights, its documented remedy for CPUs without VNNI."""
    _onnxruntime(request, reduce_range=True)


def onnxruntime_default(request: dict[str, Any]) -> None:
    """ONNX Runtime's static quantizer with no option set: what TensorRT's parser is shown."""
    from onnxruntime.quantization import quantize_static

    images = _calibration_images(request)
    quantize_static(_preprocessed(request), request["out"], _reader(images))


PEERS: Mapping[str, Callable[[dict[str, Any]], None]] = {
    step.__name__: step
    for step in (nncf, nncf_noise, onnxruntime_full, onnxruntime_7bit, onnxruntime_default)
}


def run_peer(request: dict[str, Any]) -> dict[str, Any]:
    """Quantize with one peer.

    Request: ``peer``, ``case``, ``data``, ``samples``, ``float`` (ONNX file), ``out``; with
    ``inputs``, an ``.npz`` file, that file's samples take the place of the images.
    """
    started = time.perf_counter()
    PEERS[request["peer"]](request)
    return {"seconds": round(time.perf_counter() - started, 3)}


class Calibration(Protocol):
    """Samples for a peer, as network inputs of batch 1."""

    def __len__(self) -> int: ...

    def input(self, position: int) -> np.ndarray:
        """Return ``[1, 3, H, W]`` float32."""
        ...


class _Made:
    """Samples from an ``.npz`` file that ``edgekit synthesize`` wrote."""

    def __init__(self, path: str) -> None:
        with np.load(path, allow_pickle=False) as archive:
            (name,) = set(archive.files) - {"labels", "manifest"}
            self._inputs = archive[name]

    def __len__(self) -> int:
        return len(self._inputs)

    def input(self, position: int) -> np.ndarray:
        return self._inputs[position : position + 1]


def _calibration_images(request: dict[str, Any]) -> Calibration:
    if "inputs" in request:
        return _Made(request["inputs"])
    # From the evaluation set itself, which favours the peers: no other labelled set is at hand.
    return image_set(request, request["samples"])


def _nncf(request: dict[str, Any], samples: list[np.ndarray]) -> None:
    import nncf
    import openvino  # type: ignore[import-untyped]

    # Not Core.read_model: on its graph NNCF leaves every depthwise convolution in float.
    model = openvino.convert_model(request["float"])
    quantized = nncf.quantize(model, nncf.Dataset(samples), subset_size=len(samples))
    openvino.save_model(quantized, request["out"], compress_to_fp16=False)


def _onnxruntime(request: dict[str, Any], *, reduce_range: bool) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantize_static(
        _preprocessed(request),
        request["out"],
        _reader(_calibration_images(request)),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=reduce_range,
    )


def _preprocessed(request: dict[str, Any]) -> str:
    """Run the quantizer's own preparation: shape inference and graph optimization."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = str(Path(request["out"]).with_suffix(".prepared.onnx"))
    quant_pre_process(request["float"], prepared)
    return prepared


def _reader(images: Calibration) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, inputs: Iterator[np.ndarray]) -> None:
            self._inputs = inputs

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self._inputs, None)
            return None if image is None else {"image": image}

    return Reader(images.input(index) for index in range(len(images)))


if __name__ == "__main__":
    answer(run_peer)
