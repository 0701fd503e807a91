"""The benchmark of GPU rows, where there is none: every row is there, and says why it is empty."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.errors import UnsupportedError
from edgekit.registry import RUNNERS, VARIANTS
from edgekit.runners.gpus import list_gpus


def test_rows_without_a_gpu_say_so(root: Path, tmp_path: Path) -> None:
    try:
        list_gpus()
    except UnsupportedError as error:
        reason = error.message
    else:
        pytest.skip("this machine has a GPU")
    path = tmp_path / "rows.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--json", str(path)]
    told = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    document = json.loads(path.read_text(encoding="utf-8"))
    assert {(row["state"], row["reason"]) for row in document["rows"]} == {("unmeasured", reason)}
    assert len(told.splitlines()) == len(document["rows"])
    named = {row["target"] for row in document["rows"]}
    wanted = {"torch-cuda", "torch-half", "torch-cuda-compiled", "onnxruntime-cuda", "tensorrt"}
    assert wanted <= named <= {*RUNNERS, *VARIANTS}
