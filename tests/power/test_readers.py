"""Lines of ``tegrastats`` and ``nvidia-smi`` in the forms that their documentation shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.power.nvidia_smi import parse_gpus, read_gpus, read_power, throttle_reasons
from edgekit.power.tegrastats import read_rails, read_temperatures

ORIN_NANO = (
    "11-24-2026 19:30:01 RAM 2456/7620MB (lfb 4x4MB) SWAP 0/3810MB (cached 0MB) "
    "CPU [12%@1510,3%@1510,off,off,0%@729,0%@729] EMC_FREQ 0%@2133 GR3D_FREQ 41%@[624] "
    "NVDEC off NVJPG off VIC off OFA off APE 200 cpu@48.5C soc2@47.187C soc0@46.9C "
    "gpu@49.062C tj@49.062C cv0@-256C soc1@46.5C "
    "VDD_IN 4580mW/4510mW VDD_CPU_GPU_CV 1155mW/1102mW VDD_SOC 1390mW/1380mW"
)
XAVIER = (
    "RAM 3100/15823MB (lfb 2543x4MB) CPU [2%@1190,1%@1190] EMC_FREQ 0% GR3D_FREQ 0% "
    "AO@36.5C GPU@37C Tboard@37C CPU@38.5C PMIC@100C GPU 311/311 CPU 311/350 SOC 934/934 "
    "CV 0/0 VDDRQ 155/155 SYS5V 1520/1520"
)
AGX_ORIN = (
    "RAM 5012/30536MB (lfb 5x4MB) CPU [1%@729] GR3D_FREQ 0%@[0,0] CPU@45.3C "
    "VDD_GPU_SOC 2805mW/2805mW VDD_CPU_CV 400mW/400mW VIN_SYS_5V0 3426mW/3400mW "
    "NC 0mW/0mW VDDQ_VDD2_1V8AO 501mW/500mW NC 0mW/0mW"
)


def test_rails_are_read_now_and_not_as_running_means() -> None:
    assert read_rails(ORIN_NANO) == {"VDD_IN": 4.58, "VDD_CPU_GPU_CV": 1.155, "VDD_SOC": 1.39}


def test_rails_without_unit() -> None:
    assert read_rails(XAVIER) == {
        "GPU": 0.311,
        "CPU": 0.311,
        "SOC": 0.934,
        "CV": 0.0,
        "VDDRQ": 0.155,
        "SYS5V": 1.52,
    }


def test_channels_that_are_not_connected_are_left_out() -> None:
    assert list(read_rails(AGX_ORIN)) == [
        "VDD_GPU_SOC",
        "VDD_CPU_CV",
        "VIN_SYS_5V0",
        "VDDQ_VDD2_1V8AO",
    ]


def test_temperatures_of_parts_that_are_on() -> None:
    assert read_temperatures(ORIN_NANO)["gpu"] == 49.062
    assert "cv0" not in read_temperatures(ORIN_NANO)
    assert read_temperatures(XAVIER)["PMIC"] == 100.0


@pytest.mark.parametrize("line", ["", "tegrastats: not permitted", "RAM 1/2MB SWAP 0/0MB"])
def test_line_without_power(line: str) -> None:
    assert read_rails(line) == {}


TWO_GPUS = """\
0, NVIDIA H100 80GB HBM3, P0, 1980, 2619, 1980, 41, 118.52, 700.00, 0x0000000000000000
1, NVIDIA A10, P8, 210, 405, 1695, 30, [N/A], 150.00, 0x0000000000000024
"""


def test_states_of_gpus() -> None:
    first, second = parse_gpus(TWO_GPUS)
    assert (first.index, first.name, first.performance_state) == (0, "NVIDIA H100 80GB HBM3", "P0")
    assert (first.sm_mhz, first.memory_mhz, first.max_sm_mhz) == (1980, 2619, 1980)
    assert (first.temperature_c, first.power_w, first.power_limit_w) == (41, 118.52, 700)
    assert (first.reasons, first.throttled) == ((), False)
    assert second.power_w is None
    assert second.reasons == ("power cap", "thermal, by software")
    assert second.throttled


def test_unknown_reasons_are_unknown() -> None:
    (gpu,) = parse_gpus("0, Orin (nvgpu), N/A, [N/A], [N/A], [N/A], [N/A], [N/A], [N/A], [N/A]\n")
    assert (gpu.throttled, gpu.reasons, gpu.performance_state, gpu.sm_mhz) == (None, (), None, None)


@pytest.mark.parametrize(
    ("bits", "names"),
    [
        (0x1, ("idle",)),
        (0x8 | 0x40, ("hardware slowdown", "thermal, by hardware")),
        (0x80, ("power brake",)),
        (0x1000, ()),
    ],
)
def test_bits_of_nvml(bits: int, names: tuple[str, ...]) -> None:
    assert throttle_reasons(bits) == names


def test_idle_gpu_is_not_throttled() -> None:
    line = TWO_GPUS.splitlines()[0].replace("0x0000000000000000", "0x0000000000000001")
    assert parse_gpus(line)[0].throttled is False


def test_power_lines() -> None:
    assert read_power("0, 118.52\n") == {"gpu0": 118.52}
    assert read_power("1, [N/A]\n") == {}


def fake_smi(folder: Path, script: str) -> str:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(folder)


def test_older_drivers_know_another_field(tmp_path: Path) -> None:
    script = (
        'case "$1" in *clocks_event*) exit 2;; *) echo "0, T4, P0, 1, 2, 3, 4, 5, 6, 0x8";; esac'
    )
    (gpu,) = read_gpus(fake_smi(tmp_path, script))
    assert (gpu.name, gpu.throttled) == ("T4", True)


def test_command_that_fails_or_is_absent_tells_nothing(tmp_path: Path) -> None:
    assert read_gpus(str(tmp_path)) == []
    assert read_gpus(fake_smi(tmp_path, "exit 9")) == []
