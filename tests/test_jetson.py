"""Jetsons by what they print: outputs as boards of three releases give them, and what follows."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit import machine_tables
from edgekit.doctor import doctor
from edgekit.jetson import (
    Jetson,
    memory_bytes,
    parse_cuda,
    parse_packages,
    parse_release,
    read_jetson,
)
from edgekit.limits import Facts, limits, settings_advice

RELEASE_6 = (
    "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, "
    "DATE: Wed Jan  8 01:49:37 UTC 2025\n"
    "# KERNEL_VARIANT: oot\n"
    "TARGET_USERSPACE_LIB_DIR=nvidia\n"
    "TARGET_USERSPACE_LIB_DIR_PATH=usr/lib/aarch64-linux-gnu/nvidia\n"
)
RELEASE_7 = (
    "# R38 (release), REVISION: 2.2, GCID: 42205042, BOARD: generic, EABI: aarch64, "
    "DATE: Thu Sep 25 22:47:11 UTC 2025\n"
    "# KERNEL_VARIANT: oot\n"
    "INSTALL_TYPE=\n"
)
RELEASE_5 = "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64\n"
PACKAGES_6 = (
    "libnvinfer10 10.3.0.30-1+cuda12.5\n"
    "libnvinfer8 \n"
    "nvidia-jetpack 6.2.1+b38\n"
    "nvidia-l4t-core 36.4.3-20250107174145\n"
    "python3-libnvinfer 10.3.0.30-1+cuda12.5\n"
    "tensorrt 10.3.0.30-1+cuda12.5\n"
)
CUDA_JSON = '{"cuda": {"name": "CUDA SDK", "version": "12.6.11"}, "cuda_nvcc": {"version": "12"}}'
MEMINFO = "MemTotal:        7802784 kB\nMemFree:          120000 kB\nMemAvailable:     798000 kB\n"


def board(root: Path, *, release: str, soc: str, dla: int, packages: str | None) -> str:
    """Write what a board has in its files, and return the folder with its dpkg-query."""
    files = {
        "etc/nv_tegra_release": release,
        "proc/device-tree/compatible": f"nvidia,p3768-0000+p3767-0005\0nvidia,{soc}\0",
        "proc/meminfo": MEMINFO,
        "usr/local/cuda/version.json": CUDA_JSON,
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    for number in range(dla):
        (root / f"sys/bus/platform/devices/158{number}0000.nvdla{number}").mkdir(parents=True)
    programs = root / "bin"
    programs.mkdir()
    if packages is not None:
        (root / "packages").write_text(packages, encoding="utf-8")
        # It fails as the real one does where one of several packages is unknown.
        script = f"#!/bin/sh\n/bin/cat '{root / 'packages'}'\necho no such >&2\nexit 1\n"
        (programs / "dpkg-query").write_text(script, encoding="utf-8")
        (programs / "dpkg-query").chmod(0o755)
    return str(programs)


def test_orin_nx_with_jetpack_6(tmp_path: Path) -> None:
    path = board(tmp_path, release=RELEASE_6, soc="tegra234", dla=2, packages=PACKAGES_6)
    assert read_jetson(tmp_path, path) == Jetson(
        l4t="36.4.3",
        jetpack="6.2.1",
        soc="tegra234",
        cuda="12.6.11",
        tensorrt="10.3.0.30",
        bindings="10.3.0.30",
        dla_cores=2,
    )
    assert memory_bytes(tmp_path) == {"total": 7802784 * 1024, "available": 798000 * 1024}


def test_thor_without_the_packages(tmp_path: Path) -> None:
    path = board(tmp_path, release=RELEASE_7, soc="tegra264", dla=0, packages=None)
    found = read_jetson(tmp_path, path)
    assert found == Jetson("38.2.2", "7", "tegra264", "12.6.11", None, None, 0)
    assert found.l4t_major == 38


def test_container_that_shows_the_board_only(tmp_path: Path) -> None:
    path = board(tmp_path, release="", soc="tegra234", dla=0, packages="")
    found = read_jetson(tmp_path, path)
    assert found is not None
    assert (found.l4t, found.jetpack, found.soc) == (None, None, "tegra234")


def test_other_machines(tmp_path: Path) -> None:
    assert read_jetson(tmp_path) is None
    assert memory_bytes(tmp_path) == {"total": None, "available": None}


@pytest.mark.parametrize(
    ("text", "release"),
    [
        (RELEASE_5, "35.4.1"),
        ("# R39 (release), REVISION: 2.0, GCID: 45755727, BOARD: generic\n", "39.2.0"),
        ("something else", None),
    ],
)
def test_releases(text: str, release: str | None) -> None:
    assert parse_release(text) == release


def test_packages_and_versions() -> None:
    assert "libnvinfer8" not in parse_packages(PACKAGES_6)  # known, not installed
    assert parse_packages("dpkg-query: no packages found\n") == {}
    assert parse_cuda("not json") is None
    assert parse_cuda("[]") is None


# What follows


ORIN = Jetson("36.4.3", "6.2.1", "tegra234", "12.6.11", "10.3.0.30", "10.3.0.30", 0)


def facts(**changes: object) -> Facts:
    values: dict[str, object] = {
        "jetson": ORIN,
        "compute_capabilities": (87,),
        "gpu_problem": None,
        "works": {"onnxruntime": {"onnxruntime": "1.23.2"}, "engines": {"tensorrt": "10.7.0"}},
        "available_bytes": 5 << 30,
        "free_bytes": 100 << 30,
    }
    return Facts(**{**values, **changes})  # type: ignore[arg-type]


def said(given: Facts) -> str:
    return "\n".join(f"{limit.what}: {limit.instead}" for limit in limits(given))


def test_nothing_is_in_the_way_of_a_good_board() -> None:
    assert said(facts()) == ""
    assert list(settings_advice(facts(power={"name": "MAXN_SUPER", "id": 2}))) == []


@pytest.mark.parametrize(
    ("changes", "what", "instead"),
    [
        (
            {"jetson": Jetson("35.4.1", "5", "tegra234", "11.4", "8.5.2", None, 0)},
            "do not run on L4T 35.4.1 (JetPack 5)",
            "JetPack 6 or later",
        ),
        (
            {"compute_capabilities": (), "gpu_problem": "cuInit failed with 999"},
            "nothing runs on the GPU: cuInit failed with 999",
            "--runtime nvidia",
        ),
        (
            {"works": {"onnxruntime": {}}},
            "this Python has no tensorrt, though the system has 10.3.0.30",
            "--system-site-packages",
        ),
        (
            {
                "works": {"onnxruntime": {}},
                "jetson": Jetson("36.4.3", "6", "tegra234", None, None, None, 0),
            },
            "no engine can be built or run",
            "apt install python3-libnvinfer",
        ),
        (
            {"works": {"engines": {"tensorrt": "8.6.2"}}},
            "TensorRT 8.6.2 does not build",
            "JetPack 6 or later",
        ),
        (
            {"works": {"engines": {"tensorrt": "10.3.0"}}},
            "TensorRT 10.3.0 fails to build INT8 detectors with their NMS",
            "without NMS",
        ),
        (
            {"jetson": Jetson("36.4.3", "6.2.1", "tegra234", None, "10.7", "10.7", 2)},
            "the 2 DLA cores stay idle",
            "on the GPU",
        ),
        ({"available_bytes": 700 << 20}, "an engine may not build: 0.73 GB", "swap"),
        ({"free_bytes": 100 << 20}, "larger networks do not fit: 0.10 GB", "workdir"),
        ({"compute_capabilities": (53,)}, "compute capability 5.3", "the CPU"),
        ({"works": {}, "jetson": None}, "no artifact runs here", "install a runtime"),
    ],
)
def test_what_will_not_work_is_said(changes: dict[str, object], what: str, instead: str) -> None:
    text = said(facts(**changes))
    assert what in text
    assert instead in text


def test_settings_that_slow_a_board_down() -> None:
    slow = facts(power={"name": "15W", "id": 0}, pinned={"cpu": False, "gpu": True})
    power, clocks = settings_advice(slow)
    assert power.startswith("power mode 15W caps")
    assert "sudo jetson_clocks" in clocks
    # A server in its usual state is no Jetson that waits for jetson_clocks.
    assert list(settings_advice(facts(jetson=None, pinned={"cpu": False, "gpu": None}))) == []


def test_report_of_a_board_is_shown() -> None:
    limit = next(limits(facts(available_bytes=700 << 20)))
    document = {
        **doctor().to_dict(),
        "jetson": ORIN.to_dict(),
        "power_mode": {"name": "15W", "id": 0},
        "clocks_pinned": {"cpu": True, "gpu": False},
        "will_not_work": [limit.to_dict()],
        "device": {"name": "nano", "host": "192.168.55.1", "port": 22, "user": "jetson"},
    }
    text = machine_tables.doctor(document)
    for part in (
        "device nano: jetson@192.168.55.1:22",
        "L4T 36.4.3; JetPack 6.2.1; CUDA 12.6.11; TensorRT 10.3.0.30; 0 DLA cores",
        "power mode 15W; pinned clocks: cpu",
        "will not work: an engine may not build",
    ):
        assert part in text
