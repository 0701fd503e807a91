"""The child process behind :mod:`edgekit.exporters._tensorrt_builder`: parses and builds.

Started as ``python -m edgekit.exporters._tensorrt_worker REQUEST RESULT``, two JSON files. The
same calls serve standard TensorRT 10, 11 and TensorRT for RTX: their module comes as ``trt``.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edgekit.errors import ConfigError, EdgekitError, ExportError, OutputError

from ._tensorrt_builder import JETSON_NOTE, PORTABILITY_NOTE, BuiltEngine
from ._tensorrt_layers import HEADING, executed_layers, onnx_name

if TYPE_CHECKING:
    import tensorrt

_OLDEST_STANDARD = 10
# The parser accepts unsigned activations but reads their codes as signed ones: other numbers.
_MISREAD = "Defaulting to INT8"


class MessageLog:
    """What the builder says: warnings and errors kept, progress passed on, layers remembered."""

    def __init__(self) -> None:
        self.warnings: Counter[str] = Counter()
        self.errors: list[str] = []
        self.layers = ""

    def logger(self, trt: ModuleType) -> tensorrt.ILogger:
        """Return a TensorRT logger that writes here; it must outlive the builder."""
        record = self.record
        interface: Any = trt.ILogger

        class Logger(interface):  # type: ignore[misc]
            def __init__(self) -> None:
                interface.__init__(self)  # the bindings demand this very call

            def log(self, severity: Any, message: str) -> None:
                record(int(severity) - int(interface.WARNING), message.strip())

        logger: tensorrt.ILogger = Logger()
        return logger

    def record(self, below_warning: int, message: str) -> None:
        """Take one message; ``below_warning`` is 0 for a warning, negative for an error."""
        if below_warning < 0:
            self.errors.append(message)
        elif below_warning == 0:
            self.warnings[message] += 1
        elif message.startswith(HEADING):
            self.layers = message
        if below_warning <= 1:  # up to "info": the last words, should the builder crash
            sys.stderr.write(message + "\n")

    def take_warnings(self) -> tuple[str, ...]:
        """Return the distinct warnings so far, with their counts, and forget them."""
        taken = tuple(
            text if count == 1 else f"{text} ({count} times)"
            for text, count in self.warnings.items()
        )
        self.warnings.clear()
        return taken


def probe(request: Mapping[str, Any]) -> dict[str, Any]:
    """Import the bindings and create the native builder: the two things that can be missing."""
    trt = _import_bindings(request["module"])
    version = str(trt.__version__)
    if request["kind"] == "standard" and int(version.split(".")[0]) < _OLDEST_STANDARD:
        raise ExportError(
            f"TensorRT {version} is too old: {_OLDEST_STANDARD} or later is needed",
            "install a newer TensorRT, or build with trtexec on the device",
        )
    log = MessageLog()
    logger = log.logger(trt)
    _create_builder(trt, logger, log)
    return {"version": version}


def build(request: Mapping[str, Any]) -> dict[str, Any]:
    """Parse once, build one engine for each plan of the request, write them."""
    trt = _import_bindings(request["module"])
    log = MessageLog()
    logger = log.logger(trt)
    builder = _create_builder(trt, logger, log)
    # Required on TensorRT 10 for the same behaviour that is the only one on 11.
    flag = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network: tensorrt.INetworkDefinition = builder.create_network(flag)
    parser: tensorrt.OnnxParser = trt.OnnxParser(network, logger)  # owns the weights: keep it
    _parse(parser, Path(request["onnx_path"]), log)
    parser_warnings = log.take_warnings()
    weighted = _weighted_layers(trt, network)
    engines = []
    for name, capability in request["plans"].items():
        started = time.monotonic()
        config = _configure(trt, builder, network, request, capability)
        plan = _serialize(builder, network, config, request, log)
        path = Path(request["out_dir"]) / name
        _write(path, plan)
        description = _inspect(trt, logger, plan, request) or log.layers
        engine = BuiltEngine(
            path=path,
            size_bytes=plan.nbytes,
            builder=f"{request['module']} {trt.__version__}",
            compute_capability=capability,
            seconds=round(time.monotonic() - started, 3),
            layers=executed_layers(description, weighted),
            warnings=parser_warnings + log.take_warnings(),
            notes=(JETSON_NOTE if request["kind"] == "rtx" else PORTABILITY_NOTE,),
        )
        engines.append(engine.to_dict())
    return {"engines": engines}


def _import_bindings(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise ExportError(
            f"the Python package '{module}' does not load: {error}",
            "its native libraries are missing or do not fit: reinstall it",
        ) from error


def _create_builder(trt: ModuleType, logger: tensorrt.ILogger, log: MessageLog) -> tensorrt.Builder:
    try:
        builder: tensorrt.Builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as error:  # what the bindings raise for a null pointer
        raise ExportError(
            f"{trt.__name__} {trt.__version__} cannot start: it needs an NVIDIA GPU and driver "
            f"({'; '.join(log.errors) or error})",
            "build on a machine with the GPU, or install TensorRT for RTX, which needs none",
        ) from error
    return builder


def _parse(parser: tensorrt.OnnxParser, path: Path, log: MessageLog) -> None:
    # From the file, not from bytes: weights in a file beside it are found, and 2 GB is no limit.
    if not parser.parse_from_file(str(path)):
        problems = [_describe(parser.get_error(index)) for index in range(parser.num_errors)]
        raise ExportError(
            f"TensorRT's parser rejects '{path.name}': {'; '.join(problems) or 'no reason given'}",
            "TensorRT takes symmetric int8 (zero point 0), float biases and standard operators",
        )
    misread = [text for text in log.warnings if _MISREAD in text]
    if misread:
        raise ExportError(
            f"TensorRT's parser would read '{path.name}' as other numbers: {misread[0]}",
            "quantize to signed int8: TensorRT has no unsigned activations on a GPU",
        )


def _describe(error: tensorrt.ParserError) -> str:
    reason = str(error.desc()).removeprefix("Assertion failed: ")
    if not error.node_operator():
        return reason
    return f"node '{error.node_name()}' ({error.node_operator()}): {reason}"


def _weighted_layers(trt: ModuleType, network: tensorrt.INetworkDefinition) -> dict[str, str]:
    """Return ONNX node name to operator for convolutions and matrix products, in graph order."""
    operators = {
        trt.LayerType.CONVOLUTION: "Conv",
        trt.LayerType.DECONVOLUTION: "ConvTranspose",
        trt.LayerType.MATRIX_MULTIPLY: "MatMul",
    }
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    return {
        onnx_name(layer.metadata, layer.name): operators[layer.type]
        for layer in layers
        if layer.type in operators
    }


def _configure(
    trt: ModuleType,
    builder: tensorrt.Builder,
    network: tensorrt.INetworkDefinition,
    request: Mapping[str, Any],
    capability: str | None,
) -> tensorrt.IBuilderConfig:
    config: tensorrt.IBuilderConfig = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace_bytes"])
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # per-layer precision is kept
    if request["optimization_level"] is not None:
        config.builder_optimization_level = request["optimization_level"]
    if capability is not None:
        _set_capability(trt, config, capability)
    if request["timing_cache"] is not None and request["kind"] == "standard":
        path = Path(request["timing_cache"])
        cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
        if not config.set_timing_cache(cache, ignore_mismatch=False):  # of another GPU or version
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    _fix_shapes(builder, network, config, request["inputs"])
    return config


def _set_capability(trt: ModuleType, config: Any, capability: str) -> None:
    # RTX only, so `config` has no type here: standard TensorRT's lacks both members.
    known = trt.ComputeCapability.__members__
    if capability not in known:
        targets = ", ".join(name for name in known if name.startswith("SM"))
        raise ConfigError(
            f"{trt.__name__} {trt.__version__} does not build for '{capability}'",
            f"it builds for: {targets}",
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(known[capability], 0)


def _fix_shapes(
    builder: tensorrt.Builder,
    network: tensorrt.INetworkDefinition,
    config: tensorrt.IBuilderConfig,
    shapes: Mapping[str, Sequence[int]],
) -> None:
    """Fix every dynamic axis to the example shape: smallest, usual and largest are the same."""
    # Any: the published stubs do not know that the bindings take a tuple for a Dims.
    profile: Any = builder.create_optimization_profile()
    dynamic = False
    for index in range(network.num_inputs):
        tensor: Any = network.get_input(index)
        stated = tuple(tensor.shape)
        shape = tuple(shapes.get(tensor.name, stated))
        fits = len(shape) == len(stated) and all(
            want in (-1, size) for size, want in zip(shape, stated, strict=True)
        )
        if not fits or -1 in shape:
            raise ExportError(
                f"TensorRT: input '{tensor.name}' has shape {list(stated)} in the ONNX file, "
                f"which {list(shape)} does not fix",
                "give a shape for every input with dynamic axes",
            )
        if -1 in stated:
            profile.set_shape(tensor.name, shape, shape, shape)
            dynamic = True
    if dynamic:
        config.add_optimization_profile(profile)


def _serialize(
    builder: tensorrt.Builder,
    network: tensorrt.INetworkDefinition,
    config: tensorrt.IBuilderConfig,
    request: Mapping[str, Any],
    log: MessageLog,
) -> tensorrt.IHostMemory:
    plan: tensorrt.IHostMemory | None = builder.build_serialized_network(network, config)
    if plan is None:
        raise ExportError(
            f"TensorRT cannot build an engine from '{Path(request['onnx_path']).name}': "
            f"{'; '.join(log.errors) or 'no reason given'}",
            "the ONNX file parses, so a kernel is missing: leave the named layer unquantized",
        )
    if request["timing_cache"] is not None and request["kind"] == "standard":
        _write(Path(request["timing_cache"]), config.get_timing_cache().serialize())
    return plan


def _inspect(
    trt: ModuleType,
    logger: tensorrt.ILogger,
    plan: tensorrt.IHostMemory,
    request: Mapping[str, Any],
) -> str:
    """Ask the engine inspector; an RTX engine opens only on the GPU that it was built for."""
    if request["kind"] == "rtx":
        return ""
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        return ""
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.ONELINE))


def _write(path: Path, content: tensorrt.IHostMemory) -> None:
    try:
        path.write_bytes(memoryview(content))
    except OSError as error:
        raise OutputError(
            f"cannot write '{path}': {error.strerror}", "free space or choose another --out"
        ) from error


def main(arguments: Sequence[str]) -> int:
    """Answer one request; what is not an edgekit error ends the process with its traceback."""
    request_path, result_path = (Path(argument) for argument in arguments)
    request = json.loads(request_path.read_text())
    try:
        result = probe(request) if request["task"] == "probe" else build(request)
    except EdgekitError as error:
        result = {"error": error.to_dict()}
    result_path.write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
