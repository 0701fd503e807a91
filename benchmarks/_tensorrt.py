"""Step: what TensorRT's parser and ahead-of-time builder say to an ONNX file."""

from __future__ import annotations

import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks._cases import CASES
from benchmarks._process import answer

_CAPABILITIES = ("SM86", "SM89")


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Parse a file and build its engines into a folder that is thrown away.

    Request: ``case``, ``path``.
    """
    from edgekit.errors import ExportError
    from edgekit.types import InputSpec

    # By name: type checkers do not follow the mapping of this package to its folder.
    builder = import_module("edgekit.exporters._tensorrt_builder").find_builder()
    if builder is None:
        return {"builder": None}
    shape = CASES[request["case"]].shape
    inputs = [InputSpec(name, shape) for name in _input_names(Path(request["path"]))]
    with tempfile.TemporaryDirectory(prefix="edgekit-benchmark-") as folder:
        try:
            report = builder.build(
                Path(request["path"]), Path(folder), inputs, compute_capabilities=_CAPABILITIES
            )
        except ExportError as error:
            return {"builder": builder.label, "rejected": error.message}
    return {
        "builder": builder.label,
        "rejected": None,
        "engines": {
            str(engine.compute_capability): {
                "size_bytes": engine.size_bytes,
                "seconds": engine.seconds,
                "layers": _precisions([layer.precision for layer in engine.layers]),
            }
            for engine in report.engines
        },
        "warnings": list(report.warnings),
        "quantization_warnings": list(report.quantization_warnings),
    }


def _input_names(path: Path) -> list[str]:
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    return [value.name for value in graph.input if value.name not in constants]


def _precisions(names: list[str]) -> dict[str, int]:
    return {name: names.count(name) for name in sorted(set(names))}


if __name__ == "__main__":
    answer(build)
