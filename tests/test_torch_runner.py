"""The torch runner on the CPU, against the network called by hand; on GPUs, the reasons."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import ConfigError, UnsafeFileError, UnsupportedError

torch = pytest.importorskip("torch", reason="the host part needs the extra 'torch'")

from edgekit.registry import VARIANTS  # noqa: E402
from edgekit.runners import open_model  # noqa: E402
from edgekit.runners.run_options import NetworkOptions, RunOptions  # noqa: E402
from edgekit.runners.tensors import TensorInfo  # noqa: E402
from edgekit.runners.timing import TimingRequest, time_block  # noqa: E402
from edgekit.torch_runner import CudaRunner, HalfRunner  # noqa: E402
from edgekit.types import InputSpec  # noqa: E402

NETWORK = NetworkOptions("tiny:build", inputs=(InputSpec("input", (1, 3, 32, 32)),))
X = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)


def by_hand(folder: Path) -> np.ndarray:
    """The network as its own source builds it, called without anything of edgekit."""
    names: dict[str, Any] = {}
    exec((folder / "tiny.py").read_text(encoding="utf-8"), names)
    network = names["build"]()
    network.load_state_dict(torch.load(folder / "tiny.pt", weights_only=True))
    with torch.no_grad():
        result: np.ndarray = network.eval()(torch.from_numpy(X)).numpy()
    return result


def test_outputs_are_those_of_the_network(tiny: Path) -> None:
    options = RunOptions(network=NETWORK)
    with open_model("torch", tiny / "tiny.pt", threads=1, options=options) as runner:
        assert runner.inputs == (TensorInfo("input", "float32", (None, 3, 32, 32)),)
        assert runner.versions == {"torch": torch.__version__}
        assert runner.executed_layers() == []
        expected = by_hand(tiny)
        # The same kernels on the same numbers.
        np.testing.assert_array_equal(runner.infer({"input": X})["output_0"], expected)
        bound: Any = runner.bind({"input": X})()
        np.testing.assert_array_equal(bound.numpy(), expected)
        with pytest.raises(ConfigError, match="expects"):
            runner.bind({"input": X[:, :1]})


def test_block_in_a_process_of_its_own_finds_the_users_module(tiny: Path) -> None:
    request = TimingRequest(
        target="torch",
        model=tiny / "tiny.pt",
        shapes={},
        batch=2,
        threads=1,
        warmup_s=0.0,
        seconds=0.01,
        options=RunOptions(network=NETWORK, folder=tiny),
    )
    block = time_block(request)
    assert block.inputs == {"input": [2, 3, 32, 32]}
    assert block.setup == {
        "device": "cpu",
        "copies": None,
        "cuda_graph": None,
        "options": {"dtype": "float32", "compiled": "false"},
    }
    assert block.device_ms is None


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_network_computes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config

    # Scalar code in one process: the compiler is called once instead of a dozen times.
    monkeypatch.setattr(config, "cpp_cache_precompile_headers", False)
    monkeypatch.setattr(config, "compile_threads", 1)
    monkeypatch.setattr(config.cpp, "simdlen", 1)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "two.py").write_text(
        "from torch import nn\n\n\ndef build():\n"
        "    return nn.Sequential(nn.Linear(4, 4), nn.ReLU())\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    weights = {"0.weight": torch.eye(4) * 2, "0.bias": torch.ones(4)}
    torch.save(weights, tmp_path / "two.pt")
    network = NetworkOptions("two:build", inputs=(InputSpec("input", (1, 4)),))
    x = np.array([[-3.0, 0.0, 1.0, 2.0]], np.float32)
    with open_model(
        "torch-compiled", tmp_path / "two.pt", threads=1, options=RunOptions(network=network)
    ) as runner:
        found = runner.infer({"input": x})["output_0"]
    np.testing.assert_array_equal(found, [[0.0, 1.0, 3.0, 5.0]])  # max(2 x + 1, 0), exactly
    assert list((tmp_path / "cache").rglob("*.so"))  # a kernel was built: it was really compiled


def test_without_a_compiler_the_reason_is_the_compiler(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tiny))
    monkeypatch.delenv("CXX", raising=False)
    with (
        pytest.raises(UnsupportedError, match="needs a C\\+\\+ compiler"),
        open_model("torch-compiled", tiny / "tiny.pt", options=RunOptions(network=NETWORK)),
    ):
        pass


ON_GPU = [name for name in VARIANTS if name.startswith("torch-") and name != "torch-compiled"]


@pytest.mark.parametrize("name", ON_GPU)
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_reason_is_told(name: str, tiny: Path) -> None:
    with (
        pytest.raises(UnsupportedError, match=r"was built without CUDA|finds no GPU"),
        open_model(name, tiny / "tiny.pt", options=RunOptions(network=NETWORK)),
    ):
        pass


def test_setup_of_a_gpu_tells_the_choices() -> None:
    runner = HalfRunner(Path("net.pt"))
    runner.tune(RunOptions(copies=False, cuda_graph=True))
    assert runner.setup.to_dict() == {
        "device": "cuda",
        "copies": False,
        "cuda_graph": True,
        "options": {"dtype": "float16", "compiled": "false"},
    }


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("copies", [True, False])
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_gpu_gives_the_same_result(tiny: Path, copies: bool, cuda_graph: bool) -> None:
    runner = CudaRunner(tiny / "tiny.pt")
    runner.tune(RunOptions(copies=copies, cuda_graph=cuda_graph, network=NETWORK))
    with runner:
        runner.bind({"input": X})()
        times = runner.device_times(3)
        found = runner.infer({"input": X})["output_0"]
    assert times is not None
    assert all(time > 0 for time in times)
    # TF32 keeps 10 bits of a mantissa: a few thousandths of the largest score.
    expected = by_hand(tiny)
    np.testing.assert_allclose(found, expected, atol=5e-3 * float(np.abs(expected).max()))


def test_file_that_would_run_code_is_refused(tmp_path: Path, tiny: Path) -> None:
    names: dict[str, Any] = {"__name__": "tiny"}
    exec((tiny / "tiny.py").read_text(encoding="utf-8"), names)
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), tmp_path / "whole.pt")
    with (
        pytest.raises(UnsafeFileError),
        open_model("torch", tmp_path / "whole.pt", options=RunOptions(network=NETWORK)),
    ):
        pass
