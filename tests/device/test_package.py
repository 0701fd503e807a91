"""The device part alone: its copy runs where torch, typer, rich and onnx do not exist."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.device.package import write_runner
from edgekit.errors import DISTRIBUTION, OutputError

BLOCKED = ("torch", "typer", "click", "rich", "onnx", "onnx_ir", "onnxscript", "safetensors", "cv2")
BLOCKER = """
import importlib, json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named '{{name}}' (blocked)", name=name)
        return None

sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runner")
    write_runner(folder)
    return folder


def modules(runner: Path) -> dict[str, Path]:
    found = {}
    for file in sorted(runner.rglob("*.py")):
        parts = file.relative_to(runner).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def test_every_module_imports_where_the_host_part_is_blocked(runner: Path, tmp_path: Path) -> None:
    names = sorted(set(modules(runner)) - {"edgekit.device.__main__", "edgekit.device.job"})
    code = BLOCKER.format(blocked=BLOCKED) + (
        f"for name in {names!r}: importlib.import_module(name)\n"
        "loaded = [m for n, m in sys.modules.items() if n.partition('.')[0] == 'edgekit']\n"
        "print(json.dumps({m.__name__: m.__file__ for m in loaded}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(runner)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout)
    assert set(names) <= set(loaded)
    # The copies, not what is installed beside them.
    assert [name for name, file in loaded.items() if not Path(file).is_relative_to(runner)] == []


def imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("edgekit"):
            for alias in node.names:
                yield node.module or "", alias.name


def test_no_copied_module_imports_one_that_stays_behind(runner: Path) -> None:
    # Also inside of functions, where a test of imports does not see it.
    held = modules(runner)
    missing = [
        f"{name} -> {module}.{attribute}"
        for name, file in held.items()
        if name != "edgekit"  # names public functions for the type checker only
        for module, attribute in imported(ast.parse(file.read_text(encoding="utf-8")))
        if module not in held
    ]
    assert missing == []


def test_copied_modules_are_among_those_promised_to_need_no_torch(
    runner: Path, device_part: set[str]
) -> None:
    assert set(modules(runner)) - device_part == {"edgekit"}


def test_equal_installations_give_equal_copies(runner: Path, tmp_path: Path) -> None:
    written = write_runner(tmp_path)
    inner = [path.relative_to(tmp_path) for path in written]
    assert inner == sorted(inner)
    assert all((runner / path).read_bytes() == (tmp_path / path).read_bytes() for path in inner)
    assert {path.relative_to(runner) for path in runner.rglob("*.py")} < set(inner)


def test_unwritable_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "edgekit").write_text("in the way")
    with pytest.raises(OutputError, match="the runner cannot be written"):
        write_runner(tmp_path)


def test_runs_with_numpy_and_onnxruntime_1_23_alone(
    runner: Path, result: Path, tmp_path: Path
) -> None:
    """In an environment without site-packages: what is not copied there does not exist."""
    packages = tmp_path / "packages"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    wanted = ["numpy==1.26.4", "onnxruntime==1.23.2"]
    installed = subprocess.run(
        [*command, str(packages), "--only-binary=:all:", *wanted],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if installed.returncode != 0:
        pytest.skip(f"no wheels to be had: {installed.stderr.strip().splitlines()[-1:]}")
    # -S: without the folders of this environment, also in the processes that it starts.
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    request = {
        "model": str(result / "onnxruntime/model.onnx"),
        "target": "onnxruntime",
        "inputs": "x.npz",
        "outputs": "y.npz",
    }
    make_inputs = "import numpy; numpy.savez('x.npz', x=numpy.ones((2, 3, 16, 16), 'float32'))"
    code = (
        f"import sys; sys.executable = {str(bare)!r}\n"
        f"{make_inputs}\n"
        "assert numpy.__version__ == '1.26.4'\n"
        "from edgekit.device.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [str(bare), "-c", code, "run", *(f"{name}={value}" for name, value in request.items())],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(runner), str(packages)))},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout.splitlines()[-1])["document"]
    assert document["versions"] == {"onnxruntime": "1.23.2"}
    assert document["outputs"] == {"file": [2, 4]}


def test_the_copy_knows_its_version(runner: Path) -> None:
    from importlib.metadata import PathDistribution, version

    (folder,) = runner.glob("*.dist-info")
    assert PathDistribution(folder).version == version(DISTRIBUTION)
