"""Power mode, clocks and throttling, from recorded outputs and stand-ins for the kernel's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgekit.power.machine import (
    clocks_pinned,
    gpu_mhz,
    parse_nvpmodel,
    power_mode,
    throttling,
)

CPU = "sys/devices/system/cpu"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NV Power Mode: MAXN\n0\n", {"name": "MAXN", "id": 0}),
        (
            "NVPM WARN: fan mode is not set!\nNV Power Mode: 15W\n2\n",
            {"name": "15W", "id": 2},
        ),
        (
            "NV Fan Mode:quiet\nNV Power Mode: MODE_15W_6CORE\n2\n",
            {"name": "MODE_15W_6CORE", "id": 2},
        ),
        ("NV Power Mode: MAXN_SUPER\n", {"name": "MAXN_SUPER", "id": None}),
        ("NVPM ERROR: Error opening /sys/...: 13\n", None),
        ("", None),
    ],
)
def test_output_of_nvpmodel(text: str, expected: dict[str, Any] | None) -> None:
    assert parse_nvpmodel(text) == expected


def test_mode_without_the_command(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "var/lib/nvpmodel/status": "pmode:0002",
            "etc/nvpmodel.conf": "# comment\n< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_0 1\n"
            "< POWER_MODEL ID=2 NAME=30W >\n< PM_CONFIG DEFAULT=2 >\n",
        },
    )
    assert power_mode(root, str(tmp_path)) == {"name": "30W", "id": 2}
    assert power_mode(tmp_path / "elsewhere", str(tmp_path)) is None


def test_command_goes_before_files(tmp_path: Path) -> None:
    tool = tmp_path / "nvpmodel"
    tool.write_text("#!/bin/sh\nprintf 'NV Power Mode: 25W\\n1\\n'\n", encoding="utf-8")
    tool.chmod(0o755)
    assert power_mode(tmp_path, str(tmp_path)) == {"name": "25W", "id": 1}


@pytest.mark.parametrize(
    ("lowest", "pinned"), [(("729600", "306000000"), False), (("1510400", "624750000"), True)]
)
def test_clocks_are_pinned_where_they_cannot_move(
    tmp_path: Path, lowest: tuple[str, str], pinned: bool
) -> None:
    gpu = "sys/class/devfreq/17000000.gpu"
    root = write(
        tmp_path,
        {
            f"{CPU}/cpu0/cpufreq/scaling_min_freq": lowest[0],
            f"{CPU}/cpu0/cpufreq/scaling_max_freq": "1510400",
            f"{gpu}/min_freq": lowest[1],
            f"{gpu}/max_freq": "624750000",
            f"{gpu}/cur_freq": "624750000",
            "sys/class/devfreq/15340000.vic/cur_freq": "999000000",
        },
    )
    assert clocks_pinned(root) == {"cpu": pinned, "gpu": pinned}
    assert gpu_mhz(root) == 624.75


def test_machine_that_tells_nothing(tmp_path: Path) -> None:
    assert clocks_pinned(tmp_path) == {"cpu": None, "gpu": None}
    assert gpu_mhz(tmp_path) is None
    assert throttling(tmp_path) == {"cpu_events": None, "overcurrent_events": None, "cooling": None}


def test_counters_and_cooling(tmp_path: Path) -> None:
    thermal = "sys/class/thermal"
    root = write(
        tmp_path,
        {
            f"{CPU}/cpu0/thermal_throttle/core_throttle_count": "3",
            f"{CPU}/cpu0/thermal_throttle/package_throttle_count": "10",
            f"{CPU}/cpu1/thermal_throttle/core_throttle_count": "4",
            "sys/class/hwmon/hwmon5/oc1_event_cnt": "1",
            "sys/class/hwmon/hwmon5/oc3_event_cnt": "6",
            f"{thermal}/cooling_device0/type": "pwm-fan",
            f"{thermal}/cooling_device0/cur_state": "3",
            f"{thermal}/cooling_device1/type": "cpufreq-cpu0",
            f"{thermal}/cooling_device1/cur_state": "2",
            f"{thermal}/cooling_device2/type": "devfreq-17000000.gpu",
            f"{thermal}/cooling_device2/cur_state": "0",
            f"{thermal}/cooling_device3/type": "intel_powerclamp",
            f"{thermal}/cooling_device3/cur_state": "-1",
            f"{thermal}/cooling_device4/type": "TCC Offset",
            f"{thermal}/cooling_device4/cur_state": "10",
        },
    )
    assert throttling(root) == {
        "cpu_events": 17,
        "overcurrent_events": 7,
        "cooling": ["cpufreq-cpu0"],
    }
