"""Runs OpenVINO IR (or ONNX) files on the CPU, compiled as ``compile_model(path, "CPU")``."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import numpy as np

from edgekit.errors import LoadError, VerificationError
from edgekit.runners.layer_times import LayerProfile
from edgekit.runners.openvino_import import import_openvino, openvino_core
from edgekit.runners.openvino_profile import read_profile
from edgekit.runners.tensors import TensorInfo, check_feeds
from edgekit.types import ExecutedLayer

# Execution-graph layer types that multiply by weights, and the operators they come from.
_WEIGHTED_LAYERS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
_WEIGHTED_OPERATORS = (
    "Convolution",
    "GroupConvolution",
    "ConvolutionBackpropData",
    "GroupConvolutionBackpropData",
    "MatMul",
)
_LOOKUP = "Gather"  # counts as a layer where its table is stored as integers
_INTEGER_TYPES = ("u8", "i8")
_STORED_TYPES = {"u8": 8, "i8": 8, "u4": 4, "i4": 4}
_FLOAT_NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64"}
_BIAS_SUFFIX = "/WithoutBiases"  # the ONNX reader splits the bias off and renames the operator


class OpenVinoRunner:
    """A model file compiled for the CPU.

    Args:
        model_path: the ``.xml`` (its ``.bin`` beside it) or an ONNX file.
        threads: inference threads; OpenVINO's own choice if ``None``.
        inference_precision: ``"f32"`` stops OpenVINO from running float layers in bfloat16 or
            float16 on CPUs that have them; ``None`` is the plain compilation.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".xml", ".onnx")
    device: ClassVar[str] = "CPU"

    def __init__(
        self,
        model_path: Path,
        *,
        threads: int | None = None,
        inference_precision: str | None = None,
    ) -> None:
        self._path = model_path
        self._threads = threads
        self._inference_precision = inference_precision
        self._compiled: Any = None
        self._request: Any = None
        self._inputs: tuple[TensorInfo, ...] = ()
        self._outputs: tuple[str, ...] = ()

    @staticmethod
    def describe() -> dict[str, Any]:
        """Return the version of OpenVINO and its devices, such as ``CPU`` and ``GPU``."""
        openvino = _openvino()
        versions = {"openvino": str(openvino.__version__)}
        return {"versions": versions, "devices": list(openvino_core().available_devices)}

    def __enter__(self) -> OpenVinoRunner:
        self._compiled, self._request = self._compile({})
        self._inputs = tuple(
            TensorInfo(
                port.get_any_name(),
                np.dtype(port.element_type.to_dtype()).name,
                tuple(None if d.is_dynamic else d.get_length() for d in port.partial_shape),
            )
            for port in self._compiled.inputs
        )
        self._outputs = tuple(_output_name(port) for port in self._compiled.outputs)
        return self

    def __exit__(self, *exc: object) -> None:
        self._request = None
        self._compiled = None

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The model's inputs."""
        return self._inputs

    @property
    def versions(self) -> dict[str, str]:
        """Version of OpenVINO."""
        return {"openvino": str(_openvino().__version__)}

    def infer(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once: input name to array, output name to array.

        Raises:
            ConfigError: the feeds do not fit the inputs.
            VerificationError: OpenVINO failed while running.
        """
        self._opened()
        checked = check_feeds(feeds, self._inputs, f"'{self._path}'")
        try:
            # Not shared: the request reuses its output buffers, the arrays must outlive that.
            results = self._request.infer(checked, share_outputs=False)
        except RuntimeError as error:
            raise VerificationError(
                f"OpenVINO failed on '{self._path}': {_last_line(error)}"
            ) from error
        return {name: results[index] for index, name in enumerate(self._outputs)}

    def bind(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """Check the feeds, set them as input tensors once and return ``InferRequest.infer``.

        Raises:
            ConfigError: the feeds do not fit the inputs.
        """
        self._opened()
        checked = check_feeds(feeds, self._inputs, f"'{self._path}'")
        request = self._compiled.create_infer_request()
        tensor = _openvino().Tensor
        for name, array in checked.items():
            request.set_tensor(name, tensor(array, shared_memory=True))

        def run(_kept: object = checked) -> object:  # the tensors do not keep their arrays alive
            return request.infer(share_outputs=True)

        return run

    def profile_layers(self, feeds: Mapping[str, np.ndarray], runs: int) -> LayerProfile:
        """Return the executed operators and their times, told by a second compilation that counts.

        Raises:
            ConfigError: the feeds do not fit the inputs.
        """
        checked = check_feeds(feeds, self._inputs, f"'{self._path}'")
        compiled, request = self._compile({"PERF_COUNT": True})
        times = []
        for _ in range(runs):
            begin = time.perf_counter()
            request.infer(checked, share_outputs=True)
            times.append(1e6 * (time.perf_counter() - begin))
        batch = next((array.shape[0] for array in checked.values() if array.ndim), 1)
        return read_profile(
            compiled.get_runtime_model(),
            batch,
            median(times),
            _weighted_operator_names(self._path),
        )

    def executed_layers(self) -> list[ExecutedLayer]:
        """List the weighted layers of the execution graph, in execution order.

        A layer counts as ``"int8"`` only if its tensors are 8-bit integers and the kernel that was
        chosen says so too. Where only the weights are integers, the precision names both types.
        """
        runtime_model = self._opened().get_runtime_model()
        operators = _weighted_operator_names(self._path)
        layers: list[tuple[int, ExecutedLayer]] = []
        for operator in runtime_model.get_ops():
            info = operator.get_rt_info()
            kind = _text(info, "layerType")
            if kind not in _WEIGHTED_LAYERS and not _is_stored_table(operator):
                continue
            originals = [name for name in _text(info, "originalLayersNames").split(",") if name]
            name = _original_name(originals, list(operators)) or str(operator.get_friendly_name())
            name = operators.get(name, name)
            layer = ExecutedLayer(name, kind, _precision(info))
            layers.append((int(_text(info, "execOrder") or 0), layer))
        return [layer for _order, layer in sorted(layers, key=lambda item: item[0])]

    def _compile(self, extra: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the compiled model and a request."""
        config: dict[str, Any] = {**self._device_config(), **extra}
        if self._threads is not None:
            config["INFERENCE_NUM_THREADS"] = self._threads
        if self._inference_precision is not None:
            config["INFERENCE_PRECISION_HINT"] = self._inference_precision
        try:
            compiled = openvino_core().compile_model(str(self._path), self.device, config)
            return compiled, compiled.create_infer_request()
        except RuntimeError as error:
            raise LoadError(f"OpenVINO cannot open '{self._path}': {_last_line(error)}") from error

    def _device_config(self) -> dict[str, Any]:
        return {}

    def _opened(self) -> Any:
        if self._compiled is None:
            raise RuntimeError("the runner is not open: use it as a context manager")
        return self._compiled


def _openvino() -> Any:
    return import_openvino()


def _weighted_operator_names(path: Path) -> dict[str, str]:
    """Return the name of each weighted operator, and the name of the layer that it computes."""
    model = openvino_core().read_model(str(path))
    operators = [o for o in model.get_ops() if o.get_type_name() in (*_WEIGHTED_OPERATORS, _LOOKUP)]
    names = {str(operator.get_friendly_name()): _layer_name(operator) for operator in operators}
    for operator in operators:
        bias = _bias_sum(operator)
        if bias is not None:  # a product with packed weights goes by the name of its bias
            layer = names[str(operator.get_friendly_name())].removesuffix(_BIAS_SUFFIX)
            names.setdefault(str(bias.get_friendly_name()), layer)
    return names


def _bias_sum(operator: Any) -> Any | None:
    """Return the sum that adds a constant to a product, and that alone reads it."""
    readers = [target.get_node() for target in operator.output(0).get_target_inputs()]
    if operator.get_type_name() != "MatMul" or len(readers) != 1:
        return None
    terms = [value.get_node().get_type_name() for value in readers[0].input_values()]
    return readers[0] if readers[0].get_type_name() == "Add" and "Constant" in terms else None


def _layer_name(operator: Any) -> str:
    """A layer's own name; the ONNX reader gives it to the bias of a transposed convolution."""
    name = str(operator.get_friendly_name())
    if not re.fullmatch(rf"{operator.get_type_name()}_\d+", name):
        return name
    readers = [target.get_node() for target in operator.output(0).get_target_inputs()]
    if len(readers) == 1 and readers[0].get_type_name() == "Add":
        return str(readers[0].get_friendly_name())
    return name


def _original_name(originals: list[str], operators: list[str]) -> str:
    """Pick the weighted operator among those that OpenVINO fused into one layer."""
    known = set(operators)
    exact = [name for name in originals if name in known]
    # Transformations append to a name, as in "fc/DequantizationMultiply".
    derived = [
        operator
        for name in originals
        for operator in sorted(operators, key=len, reverse=True)
        if name.startswith(f"{operator}/")
    ]
    for name in (*exact, *derived, *originals):
        return name.removesuffix(_BIAS_SUFFIX)
    return ""


def _is_stored_table(operator: Any) -> bool:
    """Whether a lookup reads constant integers; what a shape is computed from is of 32 bits."""
    info = operator.get_rt_info()
    if _text(info, "layerType") != _LOOKUP or _text(info, "runtimePrecision") not in _STORED_TYPES:
        return False
    table = operator.input_value(0).get_node().get_rt_info()
    return _text(table, "layerType") == "Const"


def _precision(info: Any) -> str:
    element_type = _text(info, "runtimePrecision")
    kernel = _text(info, "primitiveType").lower()
    math = kernel.rpartition("_")[2]
    if _text(info, "layerType") == _LOOKUP:  # scaled there, or behind it
        output = _text(info, "outputPrecisions")
        math = output if output in _FLOAT_NAMES else "f32"
    if element_type in _STORED_TYPES and math in _FLOAT_NAMES:
        return f"int{_STORED_TYPES[element_type]} weights, {_FLOAT_NAMES[math]} math"
    if element_type in _INTEGER_TYPES:
        return "int8" if "i8" in kernel or "int8" in kernel else "unknown"
    return _FLOAT_NAMES.get(element_type, element_type)


def _text(info: Any, key: str) -> str:
    return str(info[key].astype(str)) if key in info else ""


def _output_name(port: Any) -> str:
    # A tensor may have several names; the result node is called after the model's own.
    own = str(port.node.get_friendly_name()).split("/sink_port_")[0]
    names = sorted(str(name) for name in port.names)
    return own if own in names or not names else names[0]


def _last_line(error: RuntimeError) -> str:
    # OpenVINO prefixes its messages with one line for each source file they passed through.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith("Exception from")]
    return " ".join(told[-2:]) if told else str(error)
