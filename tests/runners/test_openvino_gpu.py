from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import UnsupportedError
from edgekit.runners import open_model
from edgekit.runners.openvino_gpu import OpenVinoGpuRunner
from edgekit.runners.run_options import RunOptions

openvino = pytest.importorskip("openvino", reason="openvino is not installed")


def test_machine_without_an_intel_gpu_says_what_openvino_sees(openvino_ir: Path) -> None:
    seen = openvino.Core().available_devices
    if any(name.startswith("GPU") for name in seen):
        pytest.skip("this machine has an Intel GPU")
    with (
        pytest.raises(UnsupportedError, match="no Intel GPU, only CPU"),
        open_model("openvino-gpu", openvino_ir),
    ):
        pass


def test_setup_tells_device_copies_and_cache() -> None:
    runner = OpenVinoGpuRunner(Path("model.xml"))
    runner.tune(RunOptions(cache=Path("cache")))
    assert runner.setup.to_dict() == {
        "device": "intel gpu",
        "copies": True,
        "cuda_graph": None,
        "options": {"CACHE_DIR": str(Path("cache/openvino"))},
    }
    with pytest.raises(UnsupportedError, match="with its copies only"):
        runner.tune(RunOptions(copies=False))
