"""The TensorRT runner.

Where there is no GPU, the flow of addresses, shapes and slices is checked with stand-ins: a driver
library on host memory (see conftest) and a module with the calls of TensorRT that the runner makes.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edgekit.errors import ConfigError, MissingDependencyError, UnsupportedError
from edgekit.runners import tensorrt as runner_module
from edgekit.runners.cuda import CudaDevice
from edgekit.runners.run_options import RunOptions
from edgekit.runners.tensorrt import Engine, TensorRtRunner, select_engine
from edgekit.runners.tensors import TensorInfo, infer_batches
from edgekit.types import ExecutedLayer

LAYERS = {
    "Layers": [
        {
            "Name": "conv",
            "LayerType": "CaskConvolution",
            "ParameterType": "Convolution",
            "Inputs": [{"Name": "x", "Format/Datatype": "Row major Int8 format"}],
        }
    ]
}


class _Context:
    """Doubles ``x`` into ``y``, at the addresses it was given."""

    def __init__(self) -> None:
        self.shape = (1, 3)
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = tuple(shape)
        return self.shape[1] <= 4

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 77  # the handle that the stand-in driver gives out
        count = int(np.prod(self.shape))
        x = (ctypes.c_float * count).from_address(self.addresses["x"])
        y = (ctypes.c_float * count).from_address(self.addresses["y"])
        y[:] = [2 * value for value in x]
        return True


class _Inspector:
    def get_engine_information(self, form: str) -> str:
        assert form == "json"
        return json.dumps(LAYERS)


class _Engine:
    num_io_tensors = 2

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name == "x" else "output"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (1, -1)

    def get_tensor_dtype(self, name: str) -> str:
        return "float"

    def create_execution_context(self) -> _Context:
        return _Context()

    def create_engine_inspector(self) -> _Inspector:
        return _Inspector()


class _Logger:
    ERROR = 1

    def __init__(self, severity: int) -> None:
        pass


class _Runtime:
    def __init__(self, logger: _Logger) -> None:
        pass

    def deserialize_cuda_engine(self, plan: bytes) -> _Engine | None:
        return _Engine() if plan == b"fits" else None


@pytest.fixture
def standin(driver_library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("tensorrt")
    module.__version__ = "10.3.0"
    module.__spec__ = sys.__spec__
    module.Logger, module.Runtime = _Logger, _Runtime
    module.nptype = {"float": np.float32}.__getitem__
    module.TensorIOMode = type("TensorIOMode", (), {"INPUT": "input"})
    module.LayerInformationFormat = type("LayerInformationFormat", (), {"JSON": "json"})
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(runner_module, "CudaDevice", lambda: CudaDevice(driver_library))


def _write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).write_bytes(b"fits")
    return folder / "model.onnx"


@pytest.mark.usefixtures("standin")
def test_samples_run_one_by_one_through_a_static_engine(tmp_path: Path) -> None:
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    with TensorRtRunner(_write(tmp_path, "engine.plan")) as runner:
        assert runner.inputs == (TensorInfo("x", "float32", (1, None)),)
        assert runner.versions == {"tensorrt": "10.3.0"}
        assert runner.executed_layers() == [ExecutedLayer("conv", "Convolution", "int8")]
        outputs = infer_batches(runner, {"x": x}, 8)
    np.testing.assert_array_equal(outputs["y"], 2 * x)


@pytest.mark.usefixtures("standin")
def test_a_shape_outside_of_the_profile_is_named(tmp_path: Path) -> None:
    with (
        TensorRtRunner(_write(tmp_path, "engine.plan")) as runner,
        pytest.raises(ConfigError, match=r"input 'x' of \[1, 5\] is outside"),
    ):
        runner.infer({"x": np.zeros((1, 5), np.float32)})


@pytest.mark.usefixtures("standin")
def test_an_engine_of_another_version_is_refused(driver_library: str, tmp_path: Path) -> None:
    path = tmp_path / "engine.plan"
    path.write_bytes(b"other version")
    with (
        pytest.raises(UnsupportedError, match=r"tensorrt 10\.3\.0 cannot load"),
        TensorRtRunner(path),
    ):
        pass
    assert ctypes.CDLL(driver_library).standin_live_allocations() == 0


def test_file_names_tell_package_and_capability() -> None:
    assert Engine.of(Path("engine.rtx.sm86.plan")) == Engine(
        Path("engine.rtx.sm86.plan"), "tensorrt_rtx", 86
    )
    assert Engine.of(Path("engine.plan")) == Engine(Path("engine.plan"), "tensorrt", None)


@pytest.mark.usefixtures("standin")
def test_the_engine_for_this_gpu_is_chosen(tmp_path: Path) -> None:
    model = _write(
        tmp_path, "engine.rtx.sm86.plan", "engine.rtx.sm89.plan", "engine.sm87.plan", "other.plan"
    )
    engine, module = select_engine(model, 87)
    assert (engine.path.name, module.__name__) == ("engine.sm87.plan", "tensorrt")


def test_no_engine_for_this_gpu_is_an_error_with_both_sides(tmp_path: Path) -> None:
    model = _write(tmp_path, "engine.rtx.sm86.plan", "engine.rtx.sm89.plan")
    with pytest.raises(
        UnsupportedError, match=r"no engine for SM87 among engine\.rtx\.sm86\.plan, engine\.rtx"
    ):
        select_engine(model, 87)
    with pytest.raises(UnsupportedError, match="holds no TensorRT engine"):
        select_engine(tmp_path / "empty" / "model.onnx", 87)


def test_the_package_that_runs_the_engine_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # as if it were not installed
    monkeypatch.setattr(runner_module, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="'tensorrt' is not installed") as caught:
        select_engine(_write(tmp_path, "engine.plan"), 87)
    assert "[tensorrt]" in caught.value.hint


def _has_gpu() -> bool:
    try:
        CudaDevice().close()
    except UnsupportedError:
        return False
    return True


@pytest.mark.skipif(_has_gpu(), reason="this machine has a GPU")
def test_without_a_gpu_an_engine_does_not_open(tmp_path: Path) -> None:
    with (
        pytest.raises(UnsupportedError, match="NVIDIA"),
        TensorRtRunner(_write(tmp_path, "engine.plan")),
    ):
        pass


@pytest.mark.gpu
@pytest.mark.skipif(not _has_gpu(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(
    ("package", "name"), [("tensorrt", "engine.plan"), ("tensorrt_rtx", "engine.rtx.plan")]
)
def test_a_real_engine_gives_the_float_result(package: str, name: str, tmp_path: Path) -> None:
    trt = pytest.importorskip(package, reason=f"{package} is not installed")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    x = network.add_input("x", trt.float32, (1, 8))
    doubled = network.add_elementwise(x, x, trt.ElementWiseOperation.SUM).get_output(0)
    doubled.name = "y"
    network.mark_output(doubled)
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    (tmp_path / name).write_bytes(bytes(plan))
    values = np.arange(24, dtype=np.float32).reshape(3, 8)
    with TensorRtRunner(tmp_path / name) as runner:
        outputs = infer_batches(runner, {"x": values}, 8)
    np.testing.assert_array_equal(outputs["y"], 2 * values)


def _outputs_on_device(runner: Any, count: int) -> list[float]:
    return list((ctypes.c_float * count).from_address(runner._context.addresses["y"]))


@pytest.mark.usefixtures("standin")
def test_without_copies_the_outputs_stay_on_the_device(tmp_path: Path) -> None:
    x = np.arange(3, dtype=np.float32).reshape(1, 3)
    runner = TensorRtRunner(_write(tmp_path, "engine.plan"))
    runner.tune(RunOptions(copies=False))
    with runner:
        call = runner.bind({"x": x})
        x += 1  # the inputs were copied once, before the first run
        assert call() is None
        assert _outputs_on_device(runner, 3) == [0.0, 2.0, 4.0]
        assert runner.setup.to_dict() == {
            "device": "cuda",
            "copies": False,
            "cuda_graph": False,
            "options": {},
        }
        # The stand-in's clock goes on with copies to the device only, and there are none.
        assert runner.device_times(3) == [0.0, 0.0, 0.0]


@pytest.mark.usefixtures("standin")
def test_graph_is_recorded_behind_one_run_and_launched_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    compute = _Context.execute_async_v3

    def counted(self: _Context, stream: int) -> bool:
        runs.append(stream)
        return compute(self, stream)

    monkeypatch.setattr(_Context, "execute_async_v3", counted)
    runner = TensorRtRunner(_write(tmp_path, "engine.plan"))
    runner.tune(RunOptions(cuda_graph=True))
    with runner:
        call: Any = runner.bind({"x": np.ones((1, 3), np.float32)})
        assert len(runs) == 2
        np.testing.assert_array_equal(call()["y"], [[2, 2, 2]])
        call()
        assert len(runs) == 2
