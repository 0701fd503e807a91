"""Which rails a machine has, from stand-ins for the files of its kernel and for its commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.power.rails import Rail, find_sources, total_of

Files = Callable[[dict[str, str]], Path]
HWMON = "sys/class/hwmon"


@pytest.fixture
def kernel(tmp_path: Path) -> Files:
    def write(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n", encoding="utf-8")
        return tmp_path

    return write


def channel(
    chip: str, number: int, label: str, millivolts: int, milliamperes: int
) -> dict[str, str]:
    return {
        f"{HWMON}/{chip}/in{number}_label": label,
        f"{HWMON}/{chip}/in{number}_input": str(millivolts),
        f"{HWMON}/{chip}/curr{number}_input": str(milliamperes),
    }


ORIN_NX = {
    f"{HWMON}/hwmon1/name": "ina3221",
    **channel("hwmon1", 1, "VDD_IN", 5000, 1200),
    **channel("hwmon1", 2, "VDD_CPU_GPU_CV", 4984, 200),
    **channel("hwmon1", 3, "VDD_SOC", 4984, 300),
    f"{HWMON}/hwmon1/in7_label": "sum of shunt voltages",
    f"{HWMON}/hwmon0/name": "tmp451",
}
AGX_ORIN = {
    f"{HWMON}/hwmon3/name": "ina3221",
    **channel("hwmon3", 1, "VDD_GPU_SOC", 20000, 300),
    **channel("hwmon3", 2, "VDD_CPU_CV", 20000, 100),
    **channel("hwmon3", 3, "VIN_SYS_5V0", 5000, 900),
    f"{HWMON}/hwmon4/name": "ina3221",
    **channel("hwmon4", 1, "NC", 0, 0),
    **channel("hwmon4", 2, "VDDQ_VDD2_1V8AO", 5000, 200),
    **channel("hwmon4", 3, "NC", 0, 0),
}


def test_orin_nx_has_a_rail_for_the_whole_board(kernel: Files, tmp_path: Path) -> None:
    (source,), reason = find_sources(kernel(ORIN_NX), str(tmp_path))
    assert (source.name, reason) == ("hwmon", None)
    watts = {rail.name: rail.read() for rail in source.rails}
    # Millivolts times milliamperes, in millionths.
    assert watts == pytest.approx({"VDD_IN": 6.0, "VDD_CPU_GPU_CV": 0.9968, "VDD_SOC": 1.4952})
    total = total_of(source.name, list(watts))
    assert (total.rails, total.whole_board) == (("VDD_IN",), True)


def test_agx_orin_is_the_sum_of_its_connected_rails(kernel: Files, tmp_path: Path) -> None:
    (source,), _ = find_sources(kernel(AGX_ORIN), str(tmp_path))
    names = [rail.name for rail in source.rails]
    assert names == ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"]
    total = total_of(source.name, names)
    assert (total.rails, total.whole_board) == (tuple(names), False)


def test_thor_tells_a_power_in_millionths(kernel: Files, tmp_path: Path) -> None:
    chip = f"{HWMON}/hwmon2"
    files = {
        f"{chip}/name": "ina238",
        f"{chip}/power1_input": "25500000",
        f"{chip}/in1_label": "VIN",
    }
    (source,), _ = find_sources(kernel(files), str(tmp_path))
    assert [(rail.name, rail.read()) for rail in source.rails] == [("VIN", 25.5)]
    assert total_of(source.name, ["VIN"]).whole_board


def zone(name: str, kind: str, microjoules: int) -> dict[str, str]:
    folder = f"sys/class/powercap/{name}"
    return {
        f"{folder}/name": kind,
        f"{folder}/energy_uj": str(microjoules),
        f"{folder}/max_energy_range_uj": "262143328850",
    }


SERVER = {
    **zone("intel-rapl:0", "package-0", 5_000_000),
    **zone("intel-rapl:0:0", "core", 2_000_000),
    **zone("intel-rapl:0:1", "dram", 1_000_000),
    **zone("intel-rapl:1", "package-1", 6_000_000),
}


def test_rapl_counts_packages_and_their_memory_once(kernel: Files, tmp_path: Path) -> None:
    (source,), _ = find_sources(kernel(SERVER), str(tmp_path))
    joules = {rail.name: rail.read() for rail in source.rails}
    assert joules == {
        "package-0": 5.0,
        "package-0:core": 2.0,
        "package-0:dram": 1.0,
        "package-1": 6.0,
    }
    assert {(rail.unit, rail.wraps_at) for rail in source.rails} == {("J", 262143.32885)}
    total = total_of(source.name, list(joules))
    assert total.rails == ("package-0", "package-0:dram", "package-1")
    assert not total.whole_board


def test_platform_counter_goes_before_its_parts(kernel: Files, tmp_path: Path) -> None:
    files = {**SERVER, **zone("intel-rapl:2", "psys", 9_000_000)}
    (source,), _ = find_sources(kernel(files), str(tmp_path))
    total = total_of(source.name, [rail.name for rail in source.rails])
    assert (total.rails, total.whole_board) == (("psys",), True)


def command(folder: Path, name: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("#!/bin/sh\n", encoding="utf-8")
    (folder / name).chmod(0o755)
    return str(folder)


def test_commands_are_asked_where_files_tell_nothing(kernel: Files, tmp_path: Path) -> None:
    path = command(tmp_path / "bin", "nvidia-smi")
    sources, _ = find_sources(kernel(SERVER), path)
    assert [source.name for source in sources] == ["rapl", "nvidia-smi"]
    assert "--query-gpu=index,power.draw" in sources[1].command
    path = command(tmp_path / "bin", "tegrastats")
    sources, _ = find_sources(tmp_path, path)
    assert [source.name for source in sources] == ["tegrastats"]
    (source,), _ = find_sources(kernel(ORIN_NX), path)
    assert source.name == "hwmon"


def test_reason_names_what_was_looked_for(kernel: Files, tmp_path: Path) -> None:
    sources, reason = find_sources(tmp_path, str(tmp_path))
    assert sources == ()
    assert reason is not None
    for part in ("INA3221", "tegrastats", "no RAPL", "nvidia-smi"):
        assert part in reason
    for name in SERVER:  # a counter that only root may read looks like one that is not there
        if not name.endswith("energy_uj"):
            kernel({name: SERVER[name]})
    _, reason = find_sources(tmp_path, str(tmp_path))
    assert reason is not None
    assert "RAPL may be read by root only" in reason


def test_unreadable_file_is_no_power(tmp_path: Path) -> None:
    assert Rail("x", "W", (str(tmp_path / "absent"),)).read() is None
