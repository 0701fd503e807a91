"""Inspector texts in the forms that TensorRT documents for its versions 10 and 11."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgekit.runners.tensorrt_layers import executed_layers
from edgekit.types import ExecutedLayer

INT8 = "Thirty-two wide channel vectorized row major Int8 format"
HALF = "Channel major FP16 format where channel % 8 == 0"


def _layer_10(name: str, tensor_format: str, **extra: Any) -> dict[str, Any]:
    tensor = {"Name": "t", "Dimensions": [1, 64, 8, 8], "Format/Datatype": tensor_format}
    return {
        "Name": f"{name} + relu",
        "LayerType": "CaskConvolution",
        "Inputs": [tensor],
        "Outputs": [tensor],
        "ParameterType": "Convolution",
        "Metadata": f"[ONNX Layer: {name}]\x1e[ONNX Layer: relu]",
        **extra,
    }


def _read(layers: list[Any], key: str = "Bindings") -> list[ExecutedLayer]:
    return executed_layers(json.dumps({"Layers": layers, key: []}))


def test_version_10_tells_the_type_in_the_format() -> None:
    reformat = {"Name": "Reformatting CopyNode for conv1", "LayerType": "Reformat"}
    layers = _read(
        [
            reformat,
            _layer_10("conv1", INT8, Weights={"Type": "Int8", "Count": 1}),
            _layer_10("conv2", HALF, Weights={"Type": "Half", "Count": 1}),
            _layer_10("conv3", "Row major linear FP32"),
        ]
    )
    assert layers == [
        ExecutedLayer("conv1", "Convolution", "int8"),
        ExecutedLayer("conv2", "Convolution", "float16"),
        ExecutedLayer("conv3", "Convolution", "float32"),
    ]


def test_version_11_tells_format_and_type_apart() -> None:
    tensor = {"Name": "t", "Format": "Row major linear (kLINEAR)", "DataType": "Int8"}
    gemm = {
        "Name": "fc_myl0_3",
        "LayerType": "gemm",
        "Inputs": [tensor],
        "Outputs": [{**tensor, "DataType": "Float"}],
        "Metadata": "[ONNX Layer: flatten]\x1e[ONNX Layer: fc/MatMul]",
    }
    copy = {"Name": "cast", "LayerType": "kgen", "TacticName": "convert_int8", "Inputs": [tensor]}
    assert _read([gemm, copy], "I/O Tensors") == [ExecutedLayer("fc/MatMul", "gemm", "int8")]


@pytest.mark.parametrize(("stored", "told"), [("Int4", "int4"), ("Int8", "int8")])
def test_weights_that_alone_are_integers(stored: str, told: str) -> None:
    tensor = {"Name": "t", "Format": "Row major linear (kLINEAR)", "DataType": "Half"}
    fused = {
        "Name": "__myl_ReplCastMulCastFc_myl0_0",
        "LayerType": "runtime_fusion",
        "TacticName": "gemm_fused",
        "Inputs": [tensor],
        "Constants": [{**tensor, "DataType": stored}, tensor],
        "Metadata": "[ONNX Layer: dq]\x1e[ONNX Layer: fc/MatMul]",
    }
    assert _read([fused], "I/O Tensors")[0].precision == f"{told} weights, float16 math"


def test_integer_input_with_float_weights_is_not_int8() -> None:
    layer = _layer_10("conv1", INT8, Weights={"Type": "Half", "Count": 1})
    assert _read([layer])[0].precision == "float16"


def test_engines_without_detail_tell_names_only() -> None:
    names = ["Reformatting CopyNode for Input Tensor 0 to conv1", "conv1 + relu", "softmax"]
    assert _read(names) == [ExecutedLayer("conv1 + relu", "unknown", "unknown")]


def test_dynamic_shapes_leave_the_precision_unknown() -> None:
    assert _read([_layer_10("conv1", "N/A due to dynamic shapes")])[0].precision == "unknown"


@pytest.mark.parametrize("text", ["{}", '{"Layers": []}'])
def test_an_empty_engine_has_no_layer(text: str) -> None:
    assert executed_layers(text) == []
