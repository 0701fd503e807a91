"""The engine builder, with the real builder of TensorRT for RTX: it needs no GPU."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.errors import ConfigError, ExportError, OutputError
from edgekit.exporters._float16 import to_float16
from edgekit.exporters._tensorrt_builder import (
    BuildOptions,
    BuildReport,
    BuiltEngine,
    EngineBuilder,
    build_command,
    find_builder,
    probe_builder,
    start_build,
)
from edgekit.exporters._tensorrt_layers import executed_layers
from edgekit.exporters.tensorrt import TensorRtTarget
from edgekit.quantized import QuantizedModel, lower
from edgekit.template import build_template
from edgekit.types import Cpu, ExecutedLayer, InputSpec

onnx = pytest.importorskip("onnx", reason="the graphs under test are ONNX files")
ir = pytest.importorskip("onnx_ir", reason="the graphs under test are ONNX files")

SCALE = 2.0**-5  # an FP16 number, as the FP16 pass demands of scales
IMAGE = InputSpec("x", (1, 16, 12, 12))


@pytest.fixture(scope="module")
def rtx() -> EngineBuilder:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    probe = probe_builder("tensorrt_rtx", "rtx")
    assert probe.builder is not None, probe.reason
    return probe.builder


@pytest.fixture
def temporary_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where child processes get their folders, to see what they leave."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


class Network:
    """A small QDQ graph in TensorRT's form, written layer by layer."""

    def __init__(self, zero_point: np.generic | None = None) -> None:
        self.zero_point = np.int8(0) if zero_point is None else zero_point
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(17)

    def constant(self, name: str, array: np.ndarray | np.generic) -> str:
        self.constants.append(onnx.numpy_helper.from_array(np.asarray(array), name))
        return name

    def op(self, kind: str, name: str, inputs: Sequence[str], **attributes: object) -> str:
        self.nodes.append(onnx.helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name

    def quantized(self, x: str, name: str) -> str:
        pair = [
            self.constant(f"{name}_scale", np.float32(SCALE)),
            self.constant(f"{name}_zero_point", self.zero_point),
        ]
        codes = self.op("QuantizeLinear", f"{name}_quantize", [x, *pair])
        return self.op("DequantizeLinear", f"{name}_dequantize", [codes, *pair])

    def weight(self, name: str, shape: tuple[int, ...]) -> list[str]:
        """Add int8 weights with a scale for each output channel (axis 0), and a float bias."""
        codes = self._random.integers(-127, 128, shape).astype(np.int8)
        inputs = [
            self.constant(f"{name}_codes", codes),
            self.constant(f"{name}_scales", np.full(shape[0], 2.0**-9, np.float32)),
        ]
        weight = self.op("DequantizeLinear", f"{name}_weight", inputs, axis=0)
        bias = self._random.normal(size=shape[0]).astype(np.float32)
        return [weight, self.constant(f"{name}_bias", bias)]

    def conv(self, x: str, name: str, shape: tuple[int, ...], group: int = 1) -> str:
        weight = self.weight(name, shape)
        pads = [shape[-1] // 2] * 4
        return self.op("Conv", name, [x, *weight], group=group, pads=pads)

    def proto(
        self,
        output: str,
        shape: Sequence[int | str],
        in_shape: Sequence[int | str] = ("N", 16, 12, 12),
    ) -> onnx.ModelProto:
        info, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
        self.nodes[-1].output[0] = "y"
        graph = onnx.helper.make_graph(
            self.nodes, "network", [info("x", kind, in_shape)], [info("y", kind, shape)],
            self.constants,
        )  # fmt: skip
        opset = onnx.helper.make_opsetid("", 20)
        model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        return model


def conv_relu(zero_point: np.generic | None = None) -> onnx.ModelProto:
    net = Network(zero_point)
    y = net.conv(net.quantized("x", "image"), "conv", (16, 16, 3, 3))
    y = net.op("Relu", "relu", [y])
    return net.proto(net.quantized(y, "out"), ["N", 16, 12, 12])


def residual() -> onnx.ModelProto:
    net = Network()
    identity = net.quantized("x", "image")
    y = net.op("Relu", "relu", [net.conv(identity, "first", (16, 16, 3, 3))])
    y = net.conv(net.quantized(y, "inner"), "second", (16, 16, 3, 3))
    y = net.op("Add", "add", [y, identity])
    return net.proto(net.quantized(y, "out"), ["N", 16, 12, 12])


def depthwise() -> onnx.ModelProto:
    net = Network()
    y = net.conv(net.quantized("x", "image"), "deep", (16, 1, 5, 5), group=16)
    y = net.op(
        "Clip",
        "relu6",
        [y, net.constant("low", np.float32(0)), net.constant("high", np.float32(6))],
    )
    y = net.conv(net.quantized(y, "inner"), "point", (32, 16, 1, 1))
    return net.proto(y, ["N", 32, 12, 12])


def classifier() -> onnx.ModelProto:
    net = Network()
    y = net.op("Flatten", "flat", [net.op("GlobalAveragePool", "pool", ["x"])])
    y = net.op(
        "Gemm", "head", [net.quantized(y, "pooled"), *net.weight("head", (24, 16))], transB=1
    )
    return net.proto(y, ["N", 24])


def save(model: onnx.ModelProto, folder: Path, *, half: bool = True) -> Path:
    if half:
        model = ir.serde.serialize_model(to_float16(ir.serde.deserialize_model(model)))
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def build(rtx: EngineBuilder, path: Path, inputs: Sequence[InputSpec] = (IMAGE,)) -> BuildReport:
    return rtx.build(path, path.parent, inputs, compute_capabilities=["SM86"])


def plans(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*.plan*"))


@pytest.mark.parametrize(
    ("network", "layers"),
    [
        (conv_relu, {"conv": "Conv"}),
        (residual, {"first": "Conv", "second": "Conv"}),
        (depthwise, {"deep": "Conv", "point": "Conv"}),
        (classifier, {"head": "MatMul"}),
    ],
)
def test_quantized_layers_run_in_int8(
    rtx: EngineBuilder, tmp_path: Path, network: object, layers: Mapping[str, str]
) -> None:
    assert callable(network)
    report = build(rtx, save(network(), tmp_path))
    (engine,) = report.engines
    assert engine.path == tmp_path / "engine.rtx.sm86.plan"
    assert engine.size_bytes == engine.path.stat().st_size > 0
    assert engine.compute_capability == "SM86"
    assert engine.builder == f"tensorrt_rtx {rtx.version}"
    assert "Jetson" in engine.notes[0]
    assert engine.layers == tuple(ExecutedLayer(n, op, "int8") for n, op in layers.items())
    assert report.quantization_warnings == ()


@pytest.mark.parametrize(("half", "precision"), [(True, "float16"), (False, "float32")])
def test_unquantized_layer_runs_in_the_type_of_the_file(
    rtx: EngineBuilder, tmp_path: Path, half: bool, precision: str
) -> None:
    net = Network()
    kernel = net.constant("kernel", np.full((32, 16, 3, 3), 0.125, np.float32))
    y = net.op("Conv", "plain", ["x", kernel])
    path = save(net.proto(y, ["N", 32, 10, 10]), tmp_path, half=half)
    assert build(rtx, path).engines[0].layers == (ExecutedLayer("plain", "Conv", precision),)


def test_float32_quantizers_cause_no_warning_at_all(rtx: EngineBuilder, tmp_path: Path) -> None:
    # The counterpart of the lossless "scales to fp32" message: it must come from FP16 scales only.
    assert build(rtx, save(conv_relu(), tmp_path, half=False)).warnings == ()


def test_one_engine_for_each_compute_capability(rtx: EngineBuilder, tmp_path: Path) -> None:
    report = rtx.build(save(conv_relu(), tmp_path), tmp_path, [IMAGE])
    assert plans(tmp_path) == ["engine.rtx.sm86.plan", "engine.rtx.sm89.plan"]
    assert [engine.compute_capability for engine in report.engines] == ["SM86", "SM89"]
    first, second = (engine.path.read_bytes() for engine in report.engines)
    assert first != second
    # FP16 scales cause messages, which must be counted for each engine alone.
    assert report.engines[0].warnings == report.engines[1].warnings != ()


def test_asynchronous_build(rtx: EngineBuilder, tmp_path: Path) -> None:
    path = save(conv_relu(), tmp_path)
    started = time.monotonic()
    handle = start_build(rtx, path, tmp_path, [IMAGE], compute_capabilities=["SM86"])
    # Starting is a fork and a small file; a build takes several tenths of a second at the least.
    assert time.monotonic() - started < 0.2
    assert plans(tmp_path) == []
    report = handle.wait()
    assert handle.wait() is report
    assert plans(tmp_path) == ["engine.rtx.sm86.plan"]


def test_leaving_early_stops_the_child_and_leaves_nothing(
    rtx: EngineBuilder, tmp_path: Path, temporary_folders: Path
) -> None:
    with start_build(rtx, save(conv_relu(), tmp_path), tmp_path, [IMAGE]):
        assert list(temporary_folders.iterdir()) != []
    assert list(temporary_folders.iterdir()) == []
    assert plans(tmp_path) == []


def test_asymmetric_quantization_is_rejected_by_node(rtx: EngineBuilder, tmp_path: Path) -> None:
    path = save(conv_relu(zero_point=np.int8(-128)), tmp_path)
    with pytest.raises(
        ExportError, match=r"node 'image_quantize' \(QuantizeLinear\): .*[Nn]on-zero zero point"
    ):
        build(rtx, path)
    assert plans(tmp_path) == []


def test_unsigned_activations_are_rejected(rtx: EngineBuilder, tmp_path: Path) -> None:
    # The parser itself only warns, and then reads the codes 128 to 255 as 127.
    path = save(conv_relu(zero_point=np.uint8(0)), tmp_path)
    with pytest.raises(ExportError, match=r"as other numbers: .*UINT8"):
        build(rtx, path)
    assert plans(tmp_path) == []


def test_int32_bias_is_rejected_by_node(rtx: EngineBuilder, tmp_path: Path) -> None:
    net = Network()
    x, (weight, _) = net.quantized("x", "image"), net.weight("conv", (16, 16, 3, 3))
    codes = [net.constant("codes", np.zeros(16, np.int32)), net.constant("s", np.float32(SCALE))]
    y = net.op("Conv", "conv", [x, weight, net.op("DequantizeLinear", "bias", codes)])
    with pytest.raises(ExportError, match=r"node 'bias' \(DequantizeLinear\)"):
        build(rtx, save(net.proto(y, ["N", 16, 10, 10]), tmp_path))


def test_dynamic_axes_are_fixed_to_the_example(rtx: EngineBuilder, tmp_path: Path) -> None:
    net = Network()
    y = net.conv(net.quantized("x", "image"), "conv", (16, 16, 3, 3))
    path = save(net.proto(y, ["N", 16, "H", "W"], ["N", 16, "H", "W"]), tmp_path)
    spec = InputSpec("x", (1, 16, 20, 24), variable_axes=(2, 3))
    assert build(rtx, path, [spec]).engines[0].layers[0].precision == "int8"
    for wrong in ([], [InputSpec("x", (1, 3, 20, 24))], [InputSpec("x", (1, 16))]):
        with pytest.raises(ExportError, match=r"input 'x' has shape \[-1, 16, -1, -1\]"):
            build(rtx, path, wrong)


@pytest.mark.parametrize("keep", [0.5, 0.0])
def test_corrupted_file(rtx: EngineBuilder, tmp_path: Path, keep: float) -> None:
    path = save(conv_relu(), tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)] or b"not an ONNX file")
    with pytest.raises(ExportError, match=r"parser rejects 'model\.onnx': .*arse the ONNX model"):
        build(rtx, path)


def test_missing_file(rtx: EngineBuilder, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"absent\.onnx' is not a file"):
        build(rtx, tmp_path / "absent.onnx")


def test_unknown_compute_capability(rtx: EngineBuilder, tmp_path: Path) -> None:
    path = save(conv_relu(), tmp_path)
    with pytest.raises(ConfigError, match="does not build for 'SM87'") as caught:
        rtx.build(path, tmp_path, [IMAGE], compute_capabilities=["SM86", "SM87"])
    assert "SM86" in caught.value.hint
    assert plans(tmp_path) == []  # not even the first one, which was built


def test_output_folder_that_cannot_be_written(rtx: EngineBuilder, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"engine\.rtx\.sm86\.plan"):
        rtx.build(
            save(conv_relu(), tmp_path), tmp_path / "absent", [IMAGE], compute_capabilities=["SM86"]
        )


def test_find_builder_finds_the_installed_one(rtx: EngineBuilder) -> None:
    found = find_builder()
    assert found is not None
    if found.kind == "rtx":
        assert found == rtx
    assert rtx.version == importlib.metadata.version("tensorrt_rtx_cu12")
    assert rtx.label == f"TensorRT for RTX {rtx.version}"


# What a broken installation does cannot be had from a sound one: these bindings are written here.
NO_GPU = """
__version__ = "10.3.0"
class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)
def Builder(logger):
    logger.log(ILogger.ERROR, "CUDA initialization failure with error: 35")
    raise TypeError("factory function returned nullptr")
"""
OLD = '__version__ = "8.6.1"'
BROKEN = 'raise ImportError("libnvinfer.so.10: cannot open shared object file")'
ABORTS = 'import os, sys\nsys.stderr.write("the last words\\n")\nsys.stderr.flush()\nos.abort()\n'
RAISES = 'raise AttributeError("no such name")'
SLEEPS = 'import sys, time\nsys.stderr.write("asleep\\n")\nsys.stderr.flush()\ntime.sleep(60)\n'


@pytest.fixture
def bindings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules the child process can import."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (NO_GPU, r"needs an NVIDIA GPU and driver \(CUDA initialization failure with error: 35\)"),
        (OLD, r"TensorRT 8\.6\.1 is too old"),
        (BROKEN, r"does not load: libnvinfer\.so\.10"),
        (ABORTS, r"crashed \(SIGABRT\); last output: the last words"),
        (RAISES, r"crashed \(exit code 1\); last output: .*AttributeError: no such name"),
    ],
)
def test_unusable_builder_says_why(bindings: Path, source: str, reason: str) -> None:
    (bindings / "broken_bindings.py").write_text(source)
    probe = probe_builder("broken_bindings", "standard")
    assert probe.builder is None
    assert re.search(reason, probe.reason)


def test_crash_is_an_export_error(bindings: Path, temporary_folders: Path) -> None:
    (bindings / "broken_bindings.py").write_text(ABORTS)
    builder = EngineBuilder("broken_bindings", "1.0", "standard")
    with pytest.raises(
        ExportError,
        match=r"TensorRT 1\.0 building 'model\.onnx' crashed \(SIGABRT\).*the last words",
    ):
        builder.build(save(conv_relu(), bindings), bindings, [IMAGE])
    assert list(temporary_folders.iterdir()) == []


def test_timeout_kills_the_child(bindings: Path, temporary_folders: Path) -> None:
    (bindings / "broken_bindings.py").write_text(SLEEPS)
    builder = EngineBuilder("broken_bindings", "1.0", "rtx")
    options = BuildOptions(timeout_s=1.0)  # long enough for an interpreter to start and print
    started = time.monotonic()
    with pytest.raises(ExportError, match=r"did not finish within 1 s; last output: asleep"):
        builder.build(save(conv_relu(), bindings), bindings, [IMAGE], options=options)
    assert time.monotonic() - started < 10  # the child itself would have slept for 60 s
    assert list(temporary_folders.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimization_level": 6}, "optimization level 6"),
        ({"timeout_s": 0.0}, "must be positive"),
        ({"workspace_bytes": 0}, "must be positive"),
    ],
)
def test_impossible_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BuildOptions(**options)  # type: ignore[arg-type]


def test_options_reach_the_builder(rtx: EngineBuilder, tmp_path: Path) -> None:
    path = save(conv_relu(), tmp_path)
    options = BuildOptions(optimization_level=0, workspace_bytes=1 << 24)
    report = rtx.build(path, tmp_path, [IMAGE], compute_capabilities=["SM86"], options=options)
    assert report.engines[0].layers[0].precision == "int8"


def test_standard_code_path(rtx: EngineBuilder, tmp_path: Path) -> None:
    # Standard TensorRT needs a GPU. Its path (one plan, timing cache, inspector) differs from RTX's
    # in few calls, which the bindings of RTX have too: no GPU, so the inspector has no engine.
    builder = EngineBuilder(rtx.name, rtx.version, "standard")
    options = BuildOptions(timing_cache=tmp_path / "timing.cache")
    for _ in range(2):  # the second build reads what the first wrote
        report = builder.build(save(conv_relu(), tmp_path), tmp_path, [IMAGE], options=options)
        assert (tmp_path / "timing.cache").exists()
    (engine,) = report.engines
    assert plans(tmp_path) == ["engine.plan"]
    assert engine.compute_capability is None
    assert "loads only with" in engine.notes[0]
    assert engine.layers == (ExecutedLayer("conv", "Conv", "int8"),)


@pytest.mark.parametrize("bias", [False, True])
def test_product_between_an_island_and_fp16(
    rtx: EngineBuilder, quantize_module: Callable[..., QuantizedModel], bias: bool, tmp_path: Path
) -> None:
    """The builder demands one type for the scales of both operands of a product."""
    torch.manual_seed(0)
    layers = [nn.Linear(16, 32, bias), nn.Linear(32, 32, bias), nn.GELU(), nn.Linear(32, 16, bias)]
    model = quantize_module(nn.Sequential(*layers), (12, 16))
    target = TensorRtTarget()
    lowered = lower(model, target.profile(Cpu.AVX2), target.unsupported(model.sited))
    with closing(target.export(build_template(model.sited), lowered, tmp_path)) as export:
        artifact = export.wait()
    assert [path for path in artifact.files if path.endswith(".plan")]
    assert not [note for note in artifact.notes if note.startswith("warning")]


def test_warnings_about_quantization_are_told_from_lossless_ones() -> None:
    lossless = "(foreignNode) Converting conv weight scales to fp32. (3 times)"
    harmful = "Missing scale and zero-point for tensor relu_out"
    other = "Detected invalid timing cache"
    engine = BuiltEngine(Path("e"), 1, "b", None, 0.0, (), (lossless, other, harmful), ())
    report = BuildReport((engine, engine))
    assert report.warnings == (lossless, other, harmful)
    assert report.quantization_warnings == (harmful,)


def test_engine_record_survives_json() -> None:
    layers = (ExecutedLayer("conv", "Conv", "int8"),)
    engine = BuiltEngine(Path("e.plan"), 7, "tensorrt 10.3.0", None, 1.5, layers, ("w",), ("n",))
    assert BuiltEngine.from_dict(engine.to_dict()) == engine


TENSORRT_10 = """Layers:
Name: Reformatting CopyNode for Input Tensor 0 to stem + relu, LayerType: Reformat, Inputs: [ { \
Name: x, Location: Device, Dimensions: [1,3,8,8], Format/Datatype: Row major linear FP32 }], \
Outputs: [ { Name: r, Location: Device, Dimensions: [1,3,8,8], Format/Datatype: Row major Int8 \
format }], ParameterType: Reformat, Origin: REFORMAT, Metadata: [ONNX Layer: stem]
Name: stem + relu, LayerType: CaskConvolution, Inputs: [ { Name: r, Location: Device, Dimensions: \
[1,3,8,8], Format/Datatype: Row major Int8 format }], Outputs: [ { Name: s, Location: Device, \
Dimensions: [1,8,8,8], Format/Datatype: Row major linear FP32 }], ParameterType: Convolution, \
Metadata: [ONNX Layer: stem]\x1e[ONNX Layer: relu]
Name: weight + quantize + head, LayerType: CaskGemmConvolution, Inputs: [ { Name: s, Location: \
Device, Dimensions: [1,8,8,8], Format/Datatype: Half }], Outputs: [ { Name: y, Location: Device, \
Dimensions: [1,4,8,8], Format/Datatype: Row major linear FP32 }], ParameterType: Convolution

Bindings:
x
y
"""


def test_layers_of_tensorrt_10() -> None:
    # Kinds, separators and type names as TensorRT 10 prints them; copies do not count, and where
    # there is no metadata the fused name holds the ONNX node.
    weighted = {"stem": "Conv", "head": "Conv", "gone": "MatMul"}
    assert executed_layers(TENSORRT_10, weighted) == (
        ExecutedLayer("stem", "Conv", "int8"),
        ExecutedLayer("head", "Conv", "float16"),
        ExecutedLayer("gone", "MatMul", "unknown"),
    )


def test_build_command_serves_a_device() -> None:
    inputs = [IMAGE, InputSpec("ids", (4, 2), "int64"), InputSpec("mask", (1, 2), "bool")]
    command = shlex.split(build_command(Path("out dir/tensorrt/model.onnx"), inputs))
    assert command == [
        "trtexec",
        "--onnx=out dir/tensorrt/model.onnx",
        "--saveEngine=out dir/tensorrt/engine.plan",
        "--stronglyTyped",
        "--shapes=x:1x16x12x12,mask:1x2",
        "--memPoolSize=workspace:1024",
        "--profilingVerbosity=detailed",
        "--skipInference",
    ]
    assert "--shapes" not in build_command(Path("model.onnx"))
