"""The installed distribution is the checkout: same packages, same version, no stray names."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import edgekit
from edgekit.errors import DISTRIBUTION

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def folders_with_modules(module_files: dict[str, Path]) -> set[str]:
    return {
        name if file.name == "__init__.py" else name.rpartition(".")[0]
        for name, file in module_files.items()
    }


def run_python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120
    )


def test_package_list_names_every_folder(
    project: dict[str, Any], module_files: dict[str, Path]
) -> None:
    listed = project["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(folders_with_modules(module_files))


def test_every_package_has_an_init_file(module_files: dict[str, Path]) -> None:
    without = [
        name
        for name in folders_with_modules(module_files)
        if module_files.get(name, Path()).name != "__init__.py"
    ]
    assert without == []


def test_version_has_one_source(project: dict[str, Any]) -> None:
    assert project["project"]["name"] == DISTRIBUTION
    assert edgekit.__version__ == project["project"]["version"]
    assert importlib.metadata.version(DISTRIBUTION) == project["project"]["version"]


def test_changelog_knows_the_version(root: Path, project: dict[str, Any]) -> None:
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{project['project']['version']}]" in changelog


def test_extra_all_is_every_extra_but_the_exempt(project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"]
    (requirement,) = extras["all"]
    name, listed = re.fullmatch(r"([\w-]+)\[(.+)\]", requirement).groups()  # type: ignore[union-attr]
    assert name == DISTRIBUTION
    # `tensorrt` is several GB and needs a GPU; `test` and `benchmarks` are for developers.
    assert set(listed.split(",")) == set(extras) - {"all", "test", "tensorrt"}


def test_extras_named_in_code_exist(project: dict[str, Any], module_files: dict[str, Path]) -> None:
    named = {
        extra
        for file in module_files.values()
        for extra in re.findall(r'extra="([\w-]+)"', file.read_text(encoding="utf-8"))
    }
    assert named <= set(project["project"]["optional-dependencies"])


@pytest.mark.parametrize("folder", ["exporters", "calibration"])
def test_folder_refuses_its_bare_name(root: Path, folder: str) -> None:
    result = run_python(f"import {folder}", cwd=root)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(
        f"ImportError: this package is 'edgekit.{folder}', not '{folder}'"
    )


@pytest.mark.parametrize("folder", ["exporters", "calibration"])
def test_folder_imports_under_its_full_name(root: Path, folder: str) -> None:
    result = run_python(f"import edgekit.{folder} as p; print(p.__name__)", cwd=root)
    assert (result.returncode, result.stdout.strip()) == (0, f"edgekit.{folder}"), result.stderr


@pytest.mark.parametrize("module_first", [False, True], ids=["name-first", "module-first"])
def test_public_names_are_callable_whoever_imports_first(root: Path, module_first: bool) -> None:
    # `capture`, `evaluate` and `verify` are both a function and the module that holds it.
    code = f"""
import importlib, json, edgekit
if {module_first}:
    for module in edgekit._EXPORTS.values():
        importlib.import_module(module)
names = [name for name in edgekit.__all__ if name != "__version__"]
first = {{name: getattr(edgekit, name) for name in names}}
for module in edgekit._EXPORTS.values():
    importlib.import_module(module)
print(json.dumps([n for n in names if callable(first[n]) and getattr(edgekit, n) is first[n]]))
"""
    result = run_python(code, cwd=root)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == sorted(edgekit._EXPORTS)


def test_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        edgekit.quantise  # type: ignore[attr-defined]  # noqa: B018


def test_wheel_holds_every_module(
    root: Path, module_files: dict[str, Path], tmp_path: Path
) -> None:
    # Built from a copy: a build/ left in the tree would put deleted modules into later wheels.
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source)
    for name in ("edgekit", "exporters", "calibration"):
        shutil.copytree(root / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-qq"]
    built = subprocess.run(
        [*command, "--wheel-dir", str(tmp_path), str(source)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    if "No module named pip" in built.stderr:
        pytest.skip("pip is not installed in this environment")
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    expected = {
        name.replace(".", "/") + ("/__init__.py" if file.name == "__init__.py" else ".py")
        for name, file in module_files.items()
    }
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    weights = {str(file.relative_to(root)) for file in (root / "edgekit").rglob("*.pt")}
    assert packed == expected | weights | {"edgekit/py.typed"}
