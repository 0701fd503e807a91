"""Artifacts in a process of their own: results, and every way in which the process may end.

Failures that no intact runtime produces on demand (a crash, a hang) are injected by a module named
``onnxruntime`` that the child finds before the real one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import ConfigError, MissingDependencyError, VerificationError
from edgekit.runners.child import WorkerRequest, WorkerResult, run_in_child
from edgekit.types import ExecutedLayer

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

TIMEOUT_S = 60.0  # far above the half second that a child needs; a loaded machine may be slow
FLOAT_TOLERANCE = 3e-5  # as in test_onnxruntime


@pytest.fixture
def request_(qdq_network: Any, tmp_path: Path) -> WorkerRequest:
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, x=qdq_network.inputs(5))
    return WorkerRequest("onnxruntime", qdq_network.path, inputs, batch_size=2, threads=1)


def _run_with_module(
    request: WorkerRequest,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    *,
    module: str = "onnxruntime",
    timeout_s: float = TIMEOUT_S,
) -> WorkerResult:
    modules = folder / "modules"
    modules.mkdir()
    (modules / f"{module}.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(modules))
    return run_in_child(request, timeout_s)


def test_outputs_layers_and_versions_come_back(qdq_network: Any, request_: WorkerRequest) -> None:
    import onnxruntime

    result = run_in_child(request_, TIMEOUT_S)
    assert result.failure is None
    expected = qdq_network.reference(qdq_network.inputs(5))
    np.testing.assert_allclose(result.outputs["y"], expected, rtol=0, atol=FLOAT_TOLERANCE)
    assert result.executed[0] == ExecutedLayer("conv_int", "QLinearConv", "int8")
    assert result.versions == {"onnxruntime": onnxruntime.__version__}


def test_openvino_runs_in_a_child_too(
    qdq_network: Any, openvino_ir: Path, request_: WorkerRequest
) -> None:
    request = WorkerRequest("openvino", openvino_ir, request_.inputs, batch_size=5, threads=1)
    result = run_in_child(request, TIMEOUT_S)
    assert result.failure is None
    assert result.executed[0].precision == "int8"
    assert list(result.versions) == ["openvino"]


def test_simulation_claims_no_executed_layer(qdq_network: Any, request_: WorkerRequest) -> None:
    # The name of a target that cannot run here: a simulation does not need its runtime.
    request = WorkerRequest("tensorrt", request_.model, request_.inputs, threads=1, simulate=True)
    result = run_in_child(request, TIMEOUT_S)
    assert result.failure is None
    assert result.executed == ()
    expected = qdq_network.reference(qdq_network.inputs(5))
    np.testing.assert_allclose(result.outputs["y"], expected, rtol=0, atol=FLOAT_TOLERANCE)


def test_peak_memory_is_the_childs_own(request_: WorkerRequest) -> None:
    # The child of a process that holds 384 MiB: ONNX Runtime itself takes about 100.
    ballast = np.ones(384 << 20, dtype=np.uint8)
    result = run_in_child(request_, TIMEOUT_S)
    if result.peak_memory_bytes is None:
        pytest.skip("this system does not tell a process its peak memory")
    assert 20 << 20 < result.peak_memory_bytes < ballast.nbytes


def test_child_imports_no_torch(
    request_: WorkerRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "raise RuntimeError('torch was imported')"
    result = _run_with_module(request_, tmp_path, monkeypatch, code, module="torch")
    assert result.failure is None


def test_current_directory_shadows_nothing_and_paths_may_be_relative(
    request_: WorkerRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise RuntimeError('shadowed')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    request = WorkerRequest("onnxruntime", request_.model, Path("inputs.npz"))
    assert run_in_child(request, TIMEOUT_S).failure is None


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)",
            r"target 'onnxruntime': its process crashed with SIGSEGV .*'batch\.onnx'",
        ),
        ("import os\nos._exit(7)", "ended with exit code 7"),
        ("x = {}['absent']", r"ended with exit code 1 .*KeyError: 'absent'"),
    ],
    ids=["crash", "exit", "python-error"],
)
def test_a_dying_child_is_reported(
    request_: WorkerRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    message: str,
) -> None:
    result = _run_with_module(request_, tmp_path, monkeypatch, code)
    assert isinstance(result.failure, VerificationError)
    with pytest.raises(VerificationError, match=message):
        raise result.failure
    assert result.outputs == {}


def test_a_hanging_child_is_killed(
    request_: WorkerRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import time\ntime.sleep(600)"
    result = _run_with_module(request_, tmp_path, monkeypatch, code, timeout_s=1.5)
    assert isinstance(result.failure, VerificationError)
    assert "target 'onnxruntime': no answer within 1.5 s" in result.failure.message


def test_a_missing_runtime_stays_a_missing_runtime(
    request_: WorkerRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "raise ModuleNotFoundError('gone', name='onnxruntime')"
    result = _run_with_module(request_, tmp_path, monkeypatch, code)
    assert isinstance(result.failure, MissingDependencyError)
    assert "pip install" in result.failure.hint


def test_a_broken_artifact_fails_verification(request_: WorkerRequest, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"hello")
    result = run_in_child(WorkerRequest("onnxruntime", model, request_.inputs), TIMEOUT_S)
    assert isinstance(result.failure, VerificationError)
    assert "ONNX Runtime cannot open" in result.failure.message


def test_feeds_that_do_not_fit_are_a_wrong_request(request_: WorkerRequest, tmp_path: Path) -> None:
    inputs = tmp_path / "wrong.npz"
    np.savez(inputs, z=np.zeros((1, 3, 8, 8), np.float32))
    result = run_in_child(WorkerRequest("onnxruntime", request_.model, inputs), TIMEOUT_S)
    assert isinstance(result.failure, ConfigError)
    assert "expected the inputs ['x'], got ['z']" in result.failure.message
