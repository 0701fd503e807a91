"""The recorded comparison on an emulated ARM processor, and the comparison itself, run natively."""

from __future__ import annotations

import importlib
import json
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgekit.manifest import read_manifest
from edgekit.runners.child import WorkerRequest

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


def test_recorded_figures_reach_the_bar(root: Path) -> None:
    text = (root / "benchmarks/results/arm_emulation.json").read_text(encoding="utf-8")
    document = json.loads(text)
    assert document["samples"] >= 100
    assert document["top1_equal_percent"] >= document["bar"] == 99.0
    assert document["layers"]["aarch64"] == document["layers"]["x86"]
    # The version that JetPack 6 is left with.
    assert document["versions"]["aarch64"]["onnxruntime"].startswith("1.23.")


def test_the_same_processor_computes_the_same(
    write_jetson_result: Callable[..., Path],
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This Python in place of the emulated one: the rest is what the benchmark does."""
    monkeypatch.syspath_prepend(root)  # benchmarks are run from the checkout and not installed
    compare = importlib.import_module("benchmarks.arm_emulation")._compare
    folder = write_jetson_result(tmp_path / "out", ("onnxruntime",))
    # PYTHONHOME is the folder above the program's; of a virtual environment that is no home.
    program = Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    if not program.exists():
        pytest.skip(f"'{program}' does not exist: this Python is built otherwise")
    feeds = {"x": np.random.default_rng(0).normal(size=(5, 1, 3, 16, 16)).astype(np.float32)}
    request = WorkerRequest(
        "onnxruntime", folder / "onnxruntime/model.onnx", Path(), threads=1, stacked=True
    )
    site = Path(sysconfig.get_paths()["purelib"])
    content = compare(request, feeds, [str(program)], site, read_manifest(folder))
    assert (content["samples"], content["identical"]) == (5, 5)
    assert content["sqnr_db"] == {"file": None}
    assert content["versions"]["aarch64"] == content["versions"]["x86"]
    assert content["layers"]["aarch64"] == content["layers"]["x86"]
