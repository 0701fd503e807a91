"""What a Jetson installs, and the image for it: pinned, with wheels for ARM, and linted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.deploy_files import REQUIREMENTS


def test_requirements_are_those_of_the_image(root: Path) -> None:
    assert (root / "requirements-jetson.txt").read_text(encoding="utf-8") == REQUIREMENTS
    assert "requirements-jetson.txt" in (root / "Dockerfile.jetson").read_text(encoding="utf-8")


@pytest.mark.parametrize("version", ["3.10", "3.12"])
def test_requirements_have_wheels_for_a_jetson(version: str, root: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps"]
    command += ["--report", str(report), "--only-binary=:all:", "--target", str(tmp_path / "x")]
    command += ["--implementation", "cp", "--python-version", version]
    for tag in ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014"):
        command += ["--platform", f"{tag}_aarch64"]
    wanted = applicable(version)
    done = subprocess.run([*command, *wanted], capture_output=True, text=True, timeout=300)
    if done.returncode != 0 and not reachable():
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    document = json.loads(report.read_text(encoding="utf-8"))
    found = {
        f"{item['metadata']['name']}=={item['metadata']['version']}": item["download_info"]["url"]
        for item in document["install"]
    }
    assert sorted(found) == sorted(wanted)
    assert all(url.endswith(("aarch64.whl", "none-any.whl")) for url in found.values())
    # Everything that is needed is pinned.
    names = {requirement.partition("==")[0] for requirement in wanted}
    asked = [
        text
        for item in document["install"]
        for text in item["metadata"].get("requires_dist", ())
        if "extra" not in text
    ]
    from packaging.requirements import Requirement

    environment = {"python_version": version, "sys_platform": "linux", "platform_system": "Linux"}
    needed = {
        one.name
        for one in map(Requirement, asked)
        if one.marker is None or one.marker.evaluate(environment)
    }
    assert needed <= names


def applicable(version: str) -> list[str]:
    """Return the pins for a Python: pip evaluates markers for the one that it runs in."""
    from packaging.requirements import Requirement

    lines = [line for line in REQUIREMENTS.splitlines() if line and not line.startswith("#")]
    pins = [Requirement(line) for line in lines]
    environment = {"python_version": version}
    return [
        f"{pin.name}{pin.specifier}"
        for pin in pins
        if pin.marker is None or pin.marker.evaluate(environment)
    ]


def reachable() -> bool:
    """Whether pip finds any index at all."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
    done = subprocess.run(
        [*command, os.devnull, "--only-binary=:all:", "pip"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return "No matching distribution" not in done.stderr


def test_dockerfile_is_clean(root: Path) -> None:
    checker = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if checker is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run(
        [checker, "--no-color", str(root / "Dockerfile.jetson")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_what_the_dockerfile_copies_exists(root: Path) -> None:
    lines = (root / "Dockerfile.jetson").read_text(encoding="utf-8").splitlines()
    copied = [
        word
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    ]
    assert "pyproject.toml" in copied
    assert [name for name in copied if not (root / name).exists()] == []
