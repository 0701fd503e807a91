"""Benchmarks: figures of real runtimes on tiny networks, and every cause an explanation can name.

No test asserts how long anything takes; what is asserted holds at any speed.
"""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit import machine_tables
from edgekit.bench import bench
from edgekit.bench.conditions import conditions, moment
from edgekit.bench.explain import Profiled, Reason, explain
from edgekit.bench.intervals import mean_over_blocks, median_over_blocks, ratio_over_blocks
from edgekit.bench.lanes import plan_lanes
from edgekit.bench.report import BenchReport, Comparison
from edgekit.cli import main
from edgekit.errors import ConfigError, LoadError, MissingDependencyError
from edgekit.manifest import FileEntry, Manifest, TargetEntry, write_manifest
from edgekit.runners import open_model
from edgekit.runners.layer_times import LayerKind, LayerProfile, LayerProfiler, LayerTime
from edgekit.types import Cpu, InputSpec, OutputSpec, Task

onnx = pytest.importorskip("onnx", reason="the test networks are built with onnx")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

# ONNX Runtime's float kernels round channels up to blocks of 8 or 16: with 16 nothing is added.
SIZE, CHANNELS = 8, 16
X = np.linspace(-1, 1, 3 * SIZE * SIZE, dtype=np.float32).reshape(1, 3, SIZE, SIZE)


def _convolution(name: str, source: str, result: str, *, quantized: bool) -> list[Any]:
    node = onnx.helper.make_node
    weight, before = f"{name}.weight", []
    if quantized:
        before = [
            node("QuantizeLinear", [source, "scale", "zero"], [f"{name}.q"], f"{name}.Q"),
            node("DequantizeLinear", [f"{name}.q", "scale", "zero"], [f"{name}.in"], f"{name}.DQ"),
            node("DequantizeLinear", [f"{name}.codes", "scale"], [f"{name}.dq"], f"{name}.W"),
        ]
        source, weight = f"{name}.in", f"{name}.dq"
    return [*before, node("Conv", [source, weight], [result], name, pads=[1] * 4)]


def _write_network(path: Path, *, quantized: bool, batch: int | str = "batch") -> None:
    """``x -> first -> second -> y``; where quantized, ``first`` only, and ``second`` in float."""
    array, value = onnx.numpy_helper.from_array, onnx.helper.make_tensor_value_info
    rng = np.random.default_rng(0)
    nodes = _convolution("first", "x", "hidden", quantized=quantized)
    if quantized:  # ONNX Runtime's integer convolutions return integers
        nodes += [
            onnx.helper.make_node("QuantizeLinear", ["hidden", "scale", "zero"], ["h.q"], "h.Q"),
            onnx.helper.make_node("DequantizeLinear", ["h.q", "scale", "zero"], ["h"], "h.DQ"),
        ]
    nodes += _convolution("second", "h" if quantized else "hidden", "y", quantized=False)
    tensors = {
        "second.weight": rng.normal(0, 0.2, (CHANNELS, CHANNELS, 3, 3)).astype(np.float32),
        "first.weight": rng.normal(0, 0.2, (CHANNELS, 3, 3, 3)).astype(np.float32),
    }
    if quantized:
        tensors["first.codes"] = rng.integers(-63, 64, (CHANNELS, 3, 3, 3)).astype(np.int8)
        tensors |= {"scale": np.float32(2**-6), "zero": np.uint8(128)}
        del tensors["first.weight"]
    graph = onnx.helper.make_graph(
        nodes,
        "network",
        [value("x", onnx.TensorProto.FLOAT, [batch, 3, SIZE, SIZE])],
        [value("y", onnx.TensorProto.FLOAT, [batch, CHANNELS, SIZE, SIZE])],
        [array(np.asarray(data), name) for name, data in tensors.items()],
    )
    opset = [onnx.helper.make_opsetid("", 19)]
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)


@pytest.fixture(scope="session")
def result_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result with one target, whose second layer runs in float."""
    folder = tmp_path_factory.mktemp("result")
    _write_network(folder / "float/model.onnx", quantized=False)
    _write_network(folder / "onnxruntime/model.onnx", quantized=True)
    entry = FileEntry.of(folder, "onnxruntime/model.onnx")
    manifest = Manifest(
        edgekit_version="0",
        task=Task.OTHER,
        inputs=(InputSpec("x", X.shape),),
        outputs=(OutputSpec("y", (1, CHANNELS, SIZE, SIZE)),),
        preprocessing=None,
        num_classes=None,
        scheme="w8a8",
        cpu=Cpu.AVX2,
        targets=(TargetEntry("onnxruntime", entry.path, (entry,), True, None, ()),),
        files=(FileEntry.of(folder, "float/model.onnx"),),
    )
    write_manifest(manifest, folder)
    return folder


@pytest.fixture(scope="session")
def stages() -> list[tuple[str, float]]:
    return []


@pytest.fixture(scope="session")
def report(result_dir: Path, stages: list[tuple[str, float]]) -> BenchReport:
    return bench(
        [result_dir],
        blocks=3,
        block_seconds=0.02,
        warmup_seconds=0.01,
        threads=1,
        batch=2,
        progress=lambda stage, fraction: stages.append((stage, fraction)),
    )


def test_percentiles_rise_and_lie_in_their_intervals(report: BenchReport) -> None:
    assert [result.lane.name for result in report.lanes] == [
        "onnxruntime float",
        "onnxruntime int8",
    ]
    for result in report.lanes:
        assert len(result.blocks) == 3
        for block in result.blocks:
            assert 0 < block.min_ms <= block.p50_ms <= block.p90_ms <= block.p99_ms <= block.max_ms
            assert block.min_ms <= block.mean_ms <= block.max_ms
            assert block.runs >= 10
            assert block.inputs == {"x": [2, 3, SIZE, SIZE]}
        document = result.to_dict()
        for figure in [*document["latency"].values(), *document["cold_start"].values()]:
            assert figure["low"] <= figure["value"] <= figure["high"]
        p50, p90, p99 = (
            document["latency"][f"{name}_ms"]["value"] for name in ("p50", "p90", "p99")
        )
        assert p50 <= p90 <= p99


def test_cold_start_and_memory_are_of_a_process_of_its_own(report: BenchReport) -> None:
    for result in report.lanes:
        for block in result.blocks:
            parts = (block.process_ms, block.load_ms, block.first_ms)
            assert all(part > 0 for part in parts)
            assert block.cold_start_ms == pytest.approx(sum(parts))
            # An interpreter with NumPy and ONNX Runtime takes some 50 MB; a gigabyte would be
            # that of a parent with torch.
            assert block.peak_memory_bytes is None or 2e7 < block.peak_memory_bytes < 5e8


def test_rounds_alternate_their_order(report: BenchReport, stages: list[tuple[str, float]]) -> None:
    names = [stage.split(": ")[1] for stage, _ in stages if stage.startswith("block")]
    forward = [result.lane.name for result in report.lanes]
    assert names == [*forward, *reversed(forward), *forward]
    fractions = [fraction for _, fraction in stages]
    assert fractions == sorted(fractions)
    assert stages[-1] == ("done", 1.0)


def test_comparison_is_paired_and_its_verdict_follows_from_the_interval(
    report: BenchReport,
) -> None:
    (comparison,) = report.comparisons
    above, below = (report.lane(name) for name in (comparison.lane, comparison.baseline))
    ratios = [a.p50_ms / b.p50_ms for a, b in zip(above.blocks, below.blocks, strict=True)]
    assert comparison.ratio.value == pytest.approx(float(np.median(ratios)))
    assert min(ratios) <= comparison.ratio.low <= comparison.ratio.high <= max(ratios)
    if comparison.verdict == "faster":
        assert comparison.ratio.high < 1
        assert comparison.reasons == ()
    else:
        assert comparison.ratio.high >= 1
        assert {"float_layers", "layer_times"} <= {r.code for r in comparison.reasons}


def test_document_is_json_and_is_shown(report: BenchReport) -> None:
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert document["settings"] == {
        "blocks": 3,
        "block_seconds": 0.02,
        "warmup_seconds": 0.01,
        "threads": 1,
        "batch": 2,
        "mode": "blocks",
        "min_seconds": 600.0,
        "min_queries": 100,
        "copies": True,
        "cuda_graph": False,
        "energy": True,
    }
    assert len(document["rounds"]) == 4  # before each round, and after the last
    assert document["lanes"][0]["versions"].keys() == {"onnxruntime"}
    text = machine_tables.bench(document)
    assert "onnxruntime int8" in text
    assert f"{document['conditions']['cpu']['cores']} cores" in text


def test_command(result_dir: Path) -> None:
    words = ["bench", str(result_dir / "float/model.onnx"), "--targets", "onnxruntime"]
    words += ["--blocks", "2", "--seconds", "0.01", "--warmup", "0", "--threads", "1", "--json"]
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(io.StringIO()):
        assert main(words) == 0
    (lane,) = json.loads(out.getvalue())["lanes"]
    assert (lane["target"], lane["precision"]) == ("onnxruntime", "file")


def test_command_wants_the_name_of_an_input(result_dir: Path) -> None:
    words = ["bench", str(result_dir / "float/model.onnx"), "--input", "1x3x8x8", "--json"]
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(io.StringIO()):
        assert main(words) == 2
    assert json.loads(out.getvalue())["error"]["code"] == "config"


# Lanes


def test_files_are_compared_with_the_first_one_in_the_same_runtime(result_dir: Path) -> None:
    files = [result_dir / "float/model.onnx", result_dir / "onnxruntime/model.onnx"]
    lanes = plan_lanes(files, None, {})
    assert [(lane.target, lane.model, lane.baseline) for lane in lanes] == [
        ("onnxruntime", files[0], None),
        ("onnxruntime", files[1], lanes[0].name),
        ("openvino", files[0], None),
        ("openvino", files[1], lanes[2].name),
    ]
    assert len({lane.name for lane in lanes}) == 4
    assert lanes[0].size_bytes == files[0].stat().st_size


def test_openvino_size_counts_the_weights(tmp_path: Path) -> None:
    (tmp_path / "net.xml").write_bytes(b"12345")
    (tmp_path / "net.bin").write_bytes(b"678")
    (lane,) = plan_lanes([tmp_path / "net.xml"], None, {})
    assert (lane.target, lane.size_bytes) == ("openvino", 8)


@pytest.mark.parametrize(
    ("paths", "targets", "error", "text"),
    [
        ([], None, ConfigError, "nothing to time"),
        (["absent.onnx"], None, LoadError, "does not exist"),
        (["notes.txt"], None, ConfigError, "no runtime opens '.txt'"),
        (["net.onnx", "net.onnx"], None, ConfigError, "given twice"),
        (["net.onnx"], ["tensorrt"], ConfigError, "tensorrt does not open"),
        (["net.onnx"], ["tflite"], ConfigError, "unknown target 'tflite'"),
        (["empty"], None, LoadError, "is not an edgekit result directory"),
    ],
)
def test_what_cannot_be_timed_is_told_before_anything_runs(
    tmp_path: Path, paths: list[str], targets: list[str] | None, error: type[Exception], text: str
) -> None:
    for name in ("notes.txt", "net.onnx"):
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=text):
        plan_lanes([tmp_path / path for path in paths], targets, {})


def test_damaged_result_is_refused(result_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(result_dir, tmp_path / "copy")
    _write_network(tmp_path / "copy/float/model.onnx", quantized=True)
    with pytest.raises(LoadError, match="bytes"):
        plan_lanes([tmp_path / "copy"], None, {})


@pytest.mark.parametrize(
    "settings",
    [{"blocks": 1}, {"block_seconds": 0.0}, {"warmup_seconds": -1.0}, {"threads": 0}, {"batch": 0}],
    ids=str,
)
def test_settings_out_of_range(result_dir: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        bench([result_dir], **settings)


def test_batch_that_a_file_does_not_take(tmp_path: Path) -> None:
    _write_network(tmp_path / "fixed.onnx", quantized=False, batch=1)
    with pytest.raises(ConfigError, match="first axis is fixed"):
        bench([tmp_path / "fixed.onnx"], targets=["onnxruntime"], blocks=2, batch=4)


def test_runtime_that_is_not_installed(
    result_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "raise ModuleNotFoundError('no openvino', name='openvino')"
    (tmp_path / "openvino.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    file = result_dir / "float/model.onnx"
    with pytest.raises(MissingDependencyError, match="openvino"):
        bench([file], targets=["openvino"], blocks=2)
    report = bench([file], blocks=2, block_seconds=0.01, warmup_seconds=0.0)
    assert [result.lane.target for result in report.lanes] == ["onnxruntime"]
    assert "not installed" in report.skipped["model.onnx openvino"]
    assert any("not timed" in note for note in report.notes)


# Layer profiles, told by the runtimes themselves


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_profile_tells_integer_layers_from_float_ones(result_dir: Path, runtime: str) -> None:
    pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    with open_model(runtime, result_dir / "onnxruntime/model.onnx", threads=1) as runner:
        assert isinstance(runner, LayerProfiler)
        profile = LayerProfile.from_dict(runner.profile_layers({"x": X}, 5).to_dict())
    kinds = (LayerKind.INTEGER, LayerKind.FLOAT)
    first, second = (layer for layer in profile.layers if layer.kind in kinds)
    assert (first.name, first.kind) == ("first", LayerKind.INTEGER)
    # OpenVINO calls the operator that produces an output after that output.
    assert (second.name in ("second", "y"), second.kind) == (True, LayerKind.FLOAT)
    # 8 x 8 positions, 9 x C_in products for each of C_out values.
    assert first.multiply_adds == SIZE**2 * 9 * 3 * CHANNELS
    assert second.multiply_adds == SIZE**2 * 9 * CHANNELS * CHANNELS
    assert second.moved_bytes == 4 * (2 * SIZE**2 * CHANNELS + 9 * CHANNELS * CHANNELS)
    assert any(layer.kind is LayerKind.CONVERSION for layer in profile.layers)
    assert profile.outside_microseconds >= 0
    profiled = Profiled(profile.layers, 0.0)
    reasons = explain(profiled, profiled, "itself", (), "x86_64")
    told = {reason.code: reason.text for reason in reasons}
    assert "1 of 2 layers with weights run in float" in told["float_layers"]
    assert second.name in told["float_layers"]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_bound_call_computes_what_infer_does(result_dir: Path, runtime: str) -> None:
    pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    with open_model(runtime, result_dir / "float/model.onnx", threads=1) as runner:
        call = runner.bind({"x": X})
        outputs: Any = call()
        (expected,) = runner.infer({"x": X}).values()
        got = outputs[0]
        np.testing.assert_array_equal(got, expected)  # the same kernels on the same numbers
        with pytest.raises(ConfigError, match="expects"):
            runner.bind({"x": X[:, :2]})


# Explanations, cause by cause


def layer(kind: LayerKind, microseconds: float, **changes: Any) -> LayerTime:
    found = LayerTime("layer", "Op", kind, microseconds, "jit_avx512_I8", 10**6, 1000)
    return replace(found, **changes)


QUICK = layer(LayerKind.INTEGER, 900.0)
FLOAT = Profiled((layer(LayerKind.FLOAT, 800.0),), 0.0)
VNNI = ("avx2", "avx512f", "avx512_vnni")


def codes(
    *layers: LayerTime, outside_ms: float = 0.0, flags: tuple[str, ...] = VNNI, arch: str = "x86_64"
) -> dict[str, Reason]:
    found = explain(Profiled(layers, outside_ms), FLOAT, "float", flags, arch)
    return {reason.code: reason for reason in found}


def test_comparison_of_layer_times_is_always_told() -> None:
    told = codes(QUICK)
    assert list(told) == ["layer_times"]
    assert "take 0.9 ms, and 0.8 ms in float" in told["layer_times"].text


@pytest.mark.parametrize(
    ("culprit", "code"),
    [
        (layer(LayerKind.FLOAT, 100.0, name="head"), "float_layers"),
        (layer(LayerKind.CONVERSION, 100.0, op="Reorder"), "conversions"),
        (layer(LayerKind.OTHER, 100.0, op="HardSwish"), "other_operators"),
        (layer(LayerKind.INTEGER, 100.0, multiply_adds=9_999), "memory_bound"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_cause_is_named_with_its_share(culprit: LayerTime, code: str) -> None:
    told = codes(QUICK, culprit)
    assert set(told) == {code, "layer_times"}
    assert told[code].share == pytest.approx(0.1)
    assert "10 % of the time" in told[code].text
    assert any(name in told[code].text for name in (culprit.name, culprit.op))
    # The same culprit is innocent where it takes next to nothing.
    assert set(codes(QUICK, replace(culprit, microseconds=9.0))) == {"layer_times"}


def test_layer_at_the_balance_is_not_memory_bound() -> None:
    assert "memory_bound" not in codes(QUICK, layer(LayerKind.INTEGER, 100.0, multiply_adds=10_000))
    assert "memory_bound" not in codes(QUICK, layer(LayerKind.INTEGER, 100.0, multiply_adds=None))


def test_all_layers_in_float_are_told_however_quick_they_are() -> None:
    told = codes(layer(LayerKind.FLOAT, 1.0), layer(LayerKind.OTHER, 999.0))
    assert "1 of 1 layers" in told["float_layers"].text


def test_time_outside_of_layers() -> None:
    assert codes(QUICK, outside_ms=0.1)["outside_layers"].share == pytest.approx(0.1)
    assert "outside_layers" not in codes(QUICK, outside_ms=0.05)


@pytest.mark.parametrize(
    ("flags", "arch", "kernel", "expected"),
    [
        (("avx2",), "x86_64", "", True),
        (("avx2", "avx512f"), "x86_64", "brgconv_avx512_I8", True),
        (VNNI, "x86_64", "brgconv_avx512_I8", False),
        (VNNI, "x86_64", "jit_avx2_I8", True),  # the runtime is limited to AVX2
        (VNNI, "x86_64", "jit_gemm_I8", False),  # does not tell
        (("avx2", "avx_vnni"), "x86_64", "jit_avx2_I8", False),
        (("asimddp",), "aarch64", "", False),
        ((), "aarch64", "", True),
    ],
)
def test_missing_dot_product(
    flags: tuple[str, ...], arch: str, kernel: str, expected: bool
) -> None:
    told = codes(replace(QUICK, kernel=kernel), flags=flags, arch=arch)
    assert ("no_vnni" in told) is expected
    # Without an integer layer it is no cause.
    assert "no_vnni" not in codes(layer(LayerKind.FLOAT, 900.0), flags=flags, arch=arch)


def test_causes_stand_in_the_order_of_their_share() -> None:
    told = codes(QUICK, layer(LayerKind.OTHER, 100.0), layer(LayerKind.CONVERSION, 500.0))
    assert list(told) == ["conversions", "other_operators", "layer_times"]


def test_runtime_without_a_profile() -> None:
    (reason,) = explain(Profiled.of(None, 1.0), FLOAT, "float", VNNI, "x86_64")
    assert reason.code == "no_profile"


def test_time_outside_is_the_smaller_of_both_figures() -> None:
    profile = LayerProfile((layer(LayerKind.INTEGER, 600.0),), 300.0)
    assert Profiled.of(profile, 1.0).outside_ms == pytest.approx(0.3)  # a busy machine
    assert Profiled.of(profile, 0.7).outside_ms == pytest.approx(0.1)  # recording took the rest
    assert Profiled.of(profile, 0.5).outside_ms == 0.0


# Intervals


def test_ratio_cancels_what_slows_both() -> None:
    drift = [1.0, 3.0, 2.0, 5.0, 4.0]
    ratio = ratio_over_blocks([0.5 * d for d in drift], drift)
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((0.5, 0.5, 0.5))


def test_single_outlier_does_not_move_the_median() -> None:
    estimate = median_over_blocks([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 100.0])
    assert (estimate.low, estimate.value, estimate.high) == (1.0, 1.0, 1.0)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    intervals = [mean_over_blocks(rng.normal(5.0, 1.0, 20)) for _ in range(200)]
    covered = sum(estimate.low <= 5.0 <= estimate.high for estimate in intervals)
    # 95 % of 200; percentile intervals of 20 values cover about 93 %, and three standard
    # deviations of a binomial count of 200 are 11.
    assert 175 <= covered <= 199


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [([0.8, 0.9, 0.85], "faster"), ([1.1, 1.2, 1.15], "slower"), ([0.9, 1.1, 1.0], "unclear")],
)
def test_verdict(ratios: list[float], verdict: str) -> None:
    ratio = ratio_over_blocks(ratios, [1.0] * len(ratios))
    assert Comparison("a", "b", ratio).verdict == verdict


# Conditions, from a stand-in for the files of the kernel


@pytest.fixture
def kernel(tmp_path: Path) -> Callable[..., Path]:
    def write(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="ascii")
        return tmp_path

    return write


def test_machine_that_tells_everything(kernel: Callable[..., Path]) -> None:
    cpus = "sys/devices/system/cpu"
    root = kernel(
        {
            f"{cpus}/cpu0/cpufreq/scaling_governor": "powersave\n",
            f"{cpus}/cpu0/cpufreq/scaling_cur_freq": "1000000\n",
            f"{cpus}/cpu1/cpufreq/scaling_cur_freq": "3000000\n",
            f"{cpus}/intel_pstate/no_turbo": "1\n",
            "sys/class/thermal/thermal_zone0/temp": "41000\n",
            "sys/class/thermal/thermal_zone1/temp": "63500\n",
            "proc/cpuinfo": "flags\t\t: fpu avx2\n",
        }
    )
    found = conditions(root)
    assert (found["governor"], found["turbo"], found["virtual_machine"]) == (
        "powersave",
        False,
        False,
    )
    now = moment(root)
    assert (now["cpu_mhz"], now["temperature_c"]) == (2000.0, 63.5)


def test_machine_that_tells_nothing(tmp_path: Path) -> None:
    found = conditions(tmp_path)
    unknown = ("governor", "turbo", "virtual_machine", "cpu_limit_cores", "memory_limit_bytes")
    assert [found[name] for name in unknown] == [None] * 5
    assert (moment(tmp_path)["cpu_mhz"], moment(tmp_path)["temperature_c"]) == (None, None)


@pytest.mark.parametrize(
    ("files", "cores", "memory"),
    [
        (  # version 2; the outer group is the stricter one
            {
                "proc/self/cgroup": "0::/pod/box\n",
                "sys/fs/cgroup/pod/cpu.max": "150000 100000\n",
                "sys/fs/cgroup/pod/box/cpu.max": "max 100000\n",
                "sys/fs/cgroup/pod/box/memory.max": "1073741824\n",
                "sys/fs/cgroup/pod/memory.max": "max\n",
            },
            1.5,
            1 << 30,
        ),
        (  # version 1, seen from inside a container, where the own path does not exist
            {
                "proc/self/cgroup": "4:memory:/docker/1\n3:cpu,cpuacct:/docker/1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            0.5,
            None,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
            None,
        ),
    ],
    ids=["version 2", "version 1", "no limit"],
)
def test_container_limits(
    kernel: Callable[..., Path], files: dict[str, str], cores: float | None, memory: int | None
) -> None:
    found = conditions(kernel(files))
    assert (found["cpu_limit_cores"], found["memory_limit_bytes"]) == (cores, memory)


def test_notes_tell_what_limits_the_figures(report: BenchReport) -> None:
    cores = int(report.conditions["cpu"]["cores"])
    quiet = [{"load_average": 0.1}]
    limited = replace(
        report, conditions={**report.conditions, "cpu_limit_cores": 0.5}, rounds=quiet
    )
    assert any("may use 0.5" in note for note in limited.notes)
    busy = replace(report, rounds=[{"load_average": 2.0 * cores}])
    assert any("busy" in note for note in busy.notes)
    silent = replace(
        report, rounds=quiet, conditions={**report.conditions, "cpu_limit_cores": None}
    )
    assert not any("busy" in note or "container" in note for note in silent.notes)


def test_estimates_are_finite(report: BenchReport) -> None:
    def numbers(value: Any) -> list[float]:
        if isinstance(value, dict):
            return [n for v in value.values() for n in numbers(v)]
        if isinstance(value, list):
            return [n for v in value for n in numbers(v)]
        return [value] if isinstance(value, float) else []

    found = numbers(report.to_dict())
    assert len(found) > 50
    assert all(map(math.isfinite, found))
