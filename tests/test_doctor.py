"""The state of the machine: real where the runtimes are installed, and with all of them missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from edgekit import machine_tables
from edgekit.capabilities import (
    Machine,
    Source,
    cpu_meaning,
    gpu_meaning,
    runtime_meaning,
    runtime_source,
)
from edgekit.doctor import DoctorReport, RuntimeStatus, advise, doctor
from edgekit.errors import UnsupportedError
from edgekit.registry import RUNNERS
from edgekit.requirements import Package, optional_packages, parse_requirements, within
from edgekit.runners.gpus import Gpu, list_gpus
from edgekit.runners.probe import probe

HEAVY = {"torch", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"}


@pytest.fixture(scope="module")
def report() -> DoctorReport:
    return doctor()


def test_installed_runtimes_work_and_the_others_are_missing(report: DoctorReport) -> None:
    states = {runtime.name: runtime.state for runtime in report.runtimes}
    assert list(states) == list(RUNNERS)
    for name in ("onnxruntime", "openvino"):
        assert states[name] == ("missing" if find_spec(name) is None else "works")
        assert (name in report.can["run"]) is (states[name] == "works")
    if not report.gpus:
        assert states["tensorrt"] in ("missing", "no device")


def test_document_is_json_and_is_shown(report: DoctorReport) -> None:
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    text = machine_tables.doctor(document)
    for part in (document["cpu"]["name"], *RUNNERS, f"Python {document['python']}"):
        assert part in text


def test_processor_is_this_one(report: DoctorReport) -> None:
    assert report.cpu["cores"] == len(os.sched_getaffinity(0))
    assert report.cpu_meaning.int8
    assert report.cpu_meaning.int4


# Everything missing, everything broken


def shadow(folder: Path, modules: dict[str, str]) -> dict[str, str]:
    """Environment of a process that finds these modules before the real ones."""
    for name, code in modules.items():
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    return {**os.environ, "PYTHONPATH": str(folder)}


def test_works_with_every_runtime_missing_and_imports_none(tmp_path: Path) -> None:
    names = ("torch", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")
    missing = {n: f"raise ModuleNotFoundError('no {n}', name='{n}')" for n in names}
    code = (
        "import json, sys\n"
        "from edgekit.doctor import doctor\n"
        "document = doctor().to_dict()\n"
        "print(json.dumps([document, [m.partition('.')[0] for m in sys.modules]]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=shadow(tmp_path, missing),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    document, modules = json.loads(run.stdout)
    assert {r["name"]: r["state"] for r in document["runtimes"]} == dict.fromkeys(
        RUNNERS, "missing"
    )
    assert document["can"]["run"] == []
    assert any("edgekit-quant[onnxruntime]" in line for line in document["advice"])
    assert set(modules) & HEAVY == set()


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import os; os.abort()", "exit code -6"),
        ("raise OSError('libfoo.so.1: cannot open')", "libfoo.so.1"),
        ("raise ImportError('numpy.core failed to import')", "numpy.core failed to import"),
    ],
)
def test_runtime_that_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, text: str
) -> None:
    shadow(tmp_path, {"onnxruntime": code})
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    answer = probe("onnxruntime")
    assert answer.broken is not None
    assert text in answer.broken
    assert answer.data == {}


def test_answer_is_found_among_what_a_runtime_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "print('welcome'); __version__ = '9.9'\ndef get_available_providers(): return ['CPU']"
    shadow(tmp_path, {"onnxruntime": code})
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert probe("onnxruntime").data == {"versions": {"onnxruntime": "9.9"}, "devices": ["CPU"]}


def test_module_in_the_current_directory_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    (tmp_path / "onnxruntime.py").write_text("raise SystemExit('stranger')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert probe("onnxruntime").broken is None


# Advice


def runtime(name: str, state: str) -> RuntimeStatus:
    meaning = runtime_meaning(name, Machine("x86_64"))
    return RuntimeStatus(name, state, {}, (), "because", meaning)


TORCH = Package("torch", "torch", ">=2.13,<2.14", "2.13.0")
X86 = Machine("x86_64")


def test_nothing_to_do() -> None:
    runtimes = [runtime("onnxruntime", "works"), runtime("openvino", "works")]
    assert list(advise([*runtimes, runtime("tensorrt", "missing")], [TORCH], X86)) == []


def test_advice_names_what_to_install() -> None:
    absent = Package("torch", "torch", ">=2.13,<2.14", None)
    (line,) = advise([runtime("onnxruntime", "works")], [absent], X86)
    assert "to quantize here (torch missing)" in line
    assert "pip install 'edgekit-quant[torch]'" in line


def test_advice_on_versions_and_broken_packages() -> None:
    old = Package("torch", "torch", ">=2.13,<2.14", "2.5.1+cu121")
    lines = list(advise([runtime("openvino", "broken")], [old], X86))
    assert "torch 2.5.1+cu121 is outside" in lines[0]
    assert "openvino is installed but fails (because)" in lines[1]


@pytest.mark.parametrize(
    ("name", "machine", "expected"),
    [
        ("onnxruntime", Machine("aarch64"), Source("onnxruntime")),
        ("openvino", Machine("x86_64"), Source("openvino")),
        ("openvino", Machine("aarch64"), None),  # it computes INT8 networks in float there
        ("tensorrt", Machine("x86_64"), None),
        ("tensorrt", Machine("x86_64", ("NVIDIA RTX A2000",)), Source("tensorrt-rtx")),
        ("tensorrt", Machine("x86_64", ("NVIDIA H100 80GB HBM3",)), Source("tensorrt")),
    ],
)
def test_source_of_a_runtime(name: str, machine: Machine, expected: Source | None) -> None:
    assert runtime_source(name, machine) == expected


def test_jetson_gets_tensorrt_from_jetpack() -> None:
    jetson = Machine("aarch64", ("Orin (nvgpu)",), "NVIDIA Jetson Orin Nano Developer Kit")
    states = [runtime(name, "missing") for name in RUNNERS]
    lines = list(advise(states, [TORCH], jetson))
    assert len(lines) == 2
    assert "edgekit-quant[onnxruntime]" in lines[0]
    assert "JetPack" in lines[1]


# What processors can do


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", ("avx2", "avx512f", "amx_int8", "avx512_vnni"), "AMX"),
        ("x86_64", ("avx2", "avx_vnni"), "VNNI has 8-bit dot products"),
        ("x86_64", ("avx2",), "edgekit keeps them in range"),
        ("x86_64", ("avx2", "avx512f"), "edgekit keeps them in range"),
        ("x86_64", (), "neither AVX2 nor VNNI"),
        ("aarch64", ("asimddp",), "8-bit dot products"),
        ("aarch64", (), "no 8-bit dot product"),
        ("riscv64", (), "knows nothing"),
    ],
)
def test_meaning_of_instruction_sets(machine: str, flags: tuple[str, ...], expected: str) -> None:
    assert expected in cpu_meaning(machine, flags).int8


def test_meaning_of_gpus_and_runtimes() -> None:
    assert "full speed" in gpu_meaning(87).int8  # Orin
    assert "none" in gpu_meaning(53).int8  # Jetson Nano
    assert "in float" in runtime_meaning("openvino", Machine("aarch64")).int8
    assert "in float" not in runtime_meaning("openvino", Machine("x86_64")).int8


# Packages


def test_requirements_are_those_of_the_project() -> None:
    extras = {package.name: package.extra for package in optional_packages()}
    assert extras["torch"] == "torch"
    assert extras["openvino"] == "openvino"
    assert "pytest" not in extras  # for developers
    assert "numpy" not in extras  # always there


def test_requirement_lines() -> None:
    lines = [
        "numpy<3,>=1.24",
        'surely-absent-package<2,>=1.7; (sys_platform == "linux") and extra == "rtx"',
        'edgekit-quant[torch]; extra == "all"',
        'ruff>=0.17; extra == "test"',
    ]
    (package,) = parse_requirements(lines)
    assert package == Package("surely-absent-package", "rtx", ">=1.7,<2", None)
    assert package.fits is None


@pytest.mark.parametrize(
    ("version", "bounds", "expected"),
    [
        ("2.13.0+cpu", ">=2.13,<2.14", True),
        ("2.13", ">=2.13.0,<2.14", True),
        ("2.14.0", ">=2.13,<2.14", False),
        ("2.9.1", ">=2.13,<2.14", False),
        ("10.3.0", ">=10.3,<12", True),
        ("5.0.0.93", ">=4.10,<6", True),
        ("6", ">=4.10,<6", False),
        ("1.0", "", True),
    ],
)
def test_version_bounds(version: str, bounds: str, expected: bool) -> None:
    assert within(version, bounds) is expected


# GPUs, by a stand-in for the driver library


DRIVER = """
#include <stdlib.h>
#include <string.h>
int cuInit(unsigned flags) { return getenv("STANDIN_NO_DEVICE") ? 100 : 0; }
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int index) { *device = 10 + index; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
    strncpy(name, device == 10 ? "Orin" : "H100", length);
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = device * 1000000000ul; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    int capability = device == 10 ? 87 : 90;
    *value = attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : -1;
    return 0;
}
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the stand-in for the CUDA driver")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.c").write_text(DRIVER, encoding="utf-8")
    library = folder / "libstandin.so"
    command = [compiler, "-shared", "-fPIC", "-o", library, folder / "driver.c"]
    subprocess.run(command, check=True)
    return str(library)


def test_gpus_are_listed(driver: str) -> None:
    assert list_gpus(driver) == [
        Gpu("Orin", 87, 10_000_000_000, "12.6"),
        Gpu("H100", 90, 11_000_000_000, "12.6"),
    ]


def test_driver_without_a_gpu(driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN_NO_DEVICE", "1")
    with pytest.raises(UnsupportedError, match="cuInit failed with 100"):
        list_gpus(driver)


def test_no_driver() -> None:
    with pytest.raises(UnsupportedError, match="no NVIDIA driver"):
        list_gpus("libsurelyabsent.so.1")


def test_gpu_is_shown(report: DoctorReport) -> None:
    meaning: dict[str, Any] = gpu_meaning(87).to_dict()
    gpu = {
        "name": "Orin",
        "compute_capability": 87,
        "memory_bytes": 8 * 10**9,
        "cuda_version": "12.6",
    }
    text = machine_tables.doctor({**report.to_dict(), "gpus": [{**gpu, **meaning}]})
    assert "compute capability 8.7, 8 GB, driver for CUDA 12.6" in text
