"""What a result directory says of each layer: precision, ranges, rounding error. No torch here."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import LoadError
from edgekit.manifest import Manifest, read_manifest, verify_files
from edgekit.runners.onnx_graph import GraphNode, read_initializers, read_onnx_graph

SCHEMA_VERSION = 1
INT8 = "int8"
SIMULATED = "simulated"
_PIXELS = "preprocessing"
_REPORT, _CODES = "report.json", "quantized.safetensors"
_TYPES = {"I8": np.int8, "F32": np.float32}


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """One layer with weights.

    Attributes:
        name: its module path.
        weight_shape: sizes of its weight.
        bits: widths of its weight and of the activations it reads; ``None`` where not recorded.
        input_range, output_range: values that calibration assumed; ``None`` where not recorded.
        input_rule, rule: what set the input range, and the output range.
        weight_sqnr_db: rounding error of its weights before repairs; ``None`` where unknown.
        precision: target to what the runtime ran it in; planned, where it was not executed;
            ``"simulated"``, where no runtime executes it.
        float_reason: target to the reason, where it does not run on integers.
        repaired: target to the channels that could have saturated, of those that it has.
    """

    name: str
    weight_shape: tuple[int, ...]
    bits: tuple[int, int] | None
    input_range: tuple[float, float] | None
    output_range: tuple[float, float] | None
    input_rule: str | None
    rule: str | None
    weight_sqnr_db: float | None
    precision: Mapping[str, str]
    float_reason: Mapping[str, str]
    repaired: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "name": self.name,
            "weight_shape": list(self.weight_shape),
            "bits": None if self.bits is None else list(self.bits),
            "input_range": None if self.input_range is None else list(self.input_range),
            "output_range": None if self.output_range is None else list(self.output_range),
            "input_rule": self.input_rule,
            "rule": self.rule,
            "weight_sqnr_db": self.weight_sqnr_db,
            "precision": dict(self.precision),
            "float_reason": dict(self.float_reason),
            "repaired": dict(self.repaired),
        }


@dataclass(frozen=True, slots=True)
class ResultInspection:
    """What was read. ``docs/bench.md`` documents the JSON form.

    Attributes:
        directory: the result.
        report: content of ``report.json``.
        layers: the layers with weights, in execution order.
    """

    directory: str
    report: Mapping[str, Any]
    layers: tuple[LayerRecord, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        wanted = ("status", "executed", "agreement", "sqnr_db", "simulation_sqnr_db")
        return {
            "schema_version": SCHEMA_VERSION,
            "directory": self.directory,
            "model": dict(self.report["model"]),
            "calibration": dict(self.report["calibration"]),
            "targets": {
                name: {
                    **{key: target.get(key) for key in wanted},
                    "integer_layers": target.get("integer_layers"),
                    "layers": target.get("weighted_layers"),
                    "repaired_channels": target.get("saturation", {}).get("repaired_channels"),
                }
                for name, target in self.report["targets"].items()
            },
            "layers": [layer.to_dict() for layer in self.layers],
            "tensors": dict(self.report["tensors"]),
        }


def inspect_result(directory: Path) -> ResultInspection:
    """Read a result directory.

    Raises:
        LoadError: it is not one, or its files are damaged or of another version.
    """
    manifest = read_manifest(directory)
    verify_files(directory, manifest.files)
    path = directory / _REPORT
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        layers = _layers(directory, manifest, report)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise LoadError(
            f"'{path}' and the files beside it cannot be read: {error!r}", "quantize it again"
        ) from error
    return ResultInspection(str(directory), report, layers)


def _layers(
    directory: Path, manifest: Manifest, report: Mapping[str, Any]
) -> tuple[LayerRecord, ...]:
    codes = _read_codes(directory / _CODES)
    reference = directory / manifest.reference
    nodes = {node.name: node for node in read_onnx_graph(reference).nodes}
    weights = read_initializers(reference, [f"{name}.weight" for name in codes])
    known = {**report["tensors"], **_input_tensors(manifest)}
    order = {name: position for position, name in enumerate(nodes)}
    names = sorted(codes, key=lambda name: order.get(name, len(order)))
    return tuple(
        _layer(name, codes[name], weights.get(f"{name}.weight"), nodes.get(name), known, report)
        for name in names
    )


def _input_tensors(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """Return the ranges of image inputs, which the report lists under the graph's own names."""
    plain = manifest.preprocessing
    if plain is None:
        return {}
    pairs = list(zip(plain.mean * 3, plain.std * 3, strict=False))  # one value or three
    low = min((0 - mean) / std for mean, std in pairs)
    high = max((1.0 * plain.range - mean) / std for mean, std in pairs)
    images = [s for s in manifest.inputs if len(s.shape) == 4 and s.dtype == "float32"]
    return {spec.name: {"minimum": low, "maximum": high, "rule": _PIXELS} for spec in images}


def _layer(
    name: str,
    codes: tuple[np.ndarray, np.ndarray],
    weight: np.ndarray | None,
    node: GraphNode | None,
    tensors: Mapping[str, Any],
    report: Mapping[str, Any],
) -> LayerRecord:
    widths = report.get("bits", {})
    read, written = ("", "") if node is None else (node.inputs[0], node.outputs[0])
    targets = {t: entry for t, entry in report["targets"].items() if entry["status"] == "ok"}
    repairs = {t: entry["saturation"].get("layers", {}) for t, entry in targets.items()}
    reasons = {t: entry["float_layers"] for t, entry in targets.items()}
    return LayerRecord(
        name=name,
        weight_shape=tuple(codes[0].shape),
        bits=None if name not in widths else (int(widths[name][0]), int(widths[name][1])),
        input_range=_range(tensors.get(read)),
        output_range=_range(tensors.get(written)),
        input_rule=_rule(tensors.get(read)),
        rule=_rule(tensors.get(written)),
        weight_sqnr_db=None if weight is None else _sqnr_db(weight, *codes),
        precision={t: _precision(name, entry) for t, entry in targets.items()},
        float_reason={t: found[name] for t, found in reasons.items() if name in found},
        repaired={t: found[name]["at_risk"] for t, found in repairs.items() if name in found},
    )


def _range(tensor: Mapping[str, Any] | None) -> tuple[float, float] | None:
    return None if tensor is None else (tensor["minimum"], tensor["maximum"])


def _rule(tensor: Mapping[str, Any] | None) -> str | None:
    return None if tensor is None else str(tensor["rule"])


def _precision(name: str, target: Mapping[str, Any]) -> str:
    if name not in target["float_layers"]:
        return INT8 if target["integer_layers"] else SIMULATED
    told = {layer["name"]: layer["precision"] for layer in target["layers"]}
    return str(told.get(name) or target.get("stored_layers", {}).get(name, "float"))


def _sqnr_db(weight: np.ndarray, codes: np.ndarray, scale: np.ndarray) -> float | None:
    """Return the SQNR of rounded weights; ``None`` if nothing is lost or the layouts differ."""
    if weight.shape != codes.shape:
        return None
    if scale.ndim == 2:  # one for each block along the inputs
        step = scale.repeat(codes.shape[1] // scale.shape[1], axis=1)
        return _ratio_db(weight, codes.astype(np.float64) * step - weight)
    # Output channels are axis 0, in transposed convolutions axis 1; the scale tells which fits.
    axis = 0 if scale.size == codes.shape[0] else 1
    shape = [1] * codes.ndim
    shape[axis] = -1
    return _ratio_db(weight, codes.astype(np.float64) * scale.reshape(shape) - weight)


def _ratio_db(weight: np.ndarray, error: np.ndarray) -> float | None:
    noise = float((error**2).sum())
    signal = float((weight.astype(np.float64) ** 2).sum())
    return 10 * math.log10(signal / noise) if noise > 0 and signal > 0 else None


def _read_codes(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return codes and scale of each layer, from a safetensors file of INT8 and FP32 tensors."""
    data = path.read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    body = memoryview(data)[8 + size :]
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        array = np.frombuffer(body[begin:end], _TYPES[entry["dtype"]])
        tensors[name] = array.reshape(entry["shape"])
    layers = [name.removesuffix(".codes") for name in tensors if name.endswith(".codes")]
    return {name: (tensors[f"{name}.codes"], tensors[f"{name}.scale"]) for name in layers}
