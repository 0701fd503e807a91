"""Energy from samples, against integrals worked out by hand; and the sampling process."""

from __future__ import annotations

import json
import math
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from edgekit.power.energy import Samples, Series, counted_joules, integrated_joules
from edgekit.power.monitor import PowerMonitor
from edgekit.power.rails import JOULE, WATT, Rail, Source


def test_ramp_is_integrated_exactly() -> None:
    times = np.array([0.0, 0.3, 0.5, 1.1, 2.0])
    series = Series(times, 10 * times)
    # 10 t from 0.2 to 1.7: 5 (1.7^2 - 0.2^2), between the samples too.
    assert integrated_joules(series, 0.2, 1.7) == pytest.approx(5 * (1.7**2 - 0.2**2))


def test_wave_is_integrated_as_well_as_it_is_sampled() -> None:
    times = np.arange(0, 2, 0.01)
    series = Series(times, 5 + np.sin(2 * math.pi * 3 * times))
    # The rest of a trapezoid of width h is at most h^2 / 12 times the second derivative.
    bound = 0.01**2 / 12 * (6 * math.pi) ** 2
    assert integrated_joules(series, 0.5, 1.5) == pytest.approx(5.0, abs=bound)


def test_power_outside_of_the_samples_stays_constant() -> None:
    series = Series(np.array([1.0, 2.0]), np.array([3.0, 5.0]))
    assert integrated_joules(series, 0.0, 3.0) == pytest.approx(3 + 4 + 5)


def test_counter_that_starts_again() -> None:
    series = Series(np.array([0.0, 1.0, 2.0, 3.0]), np.array([90.0, 98.0, 6.0, 14.0]))
    assert counted_joules(series, 100.0, 0.0, 3.0) == pytest.approx(24.0)
    assert counted_joules(series, 100.0, 0.5, 2.5) == pytest.approx(16.0)


def lines(source: str, *samples: tuple[float, dict[str, float]]) -> list[str]:
    return [
        json.dumps({"source": source, "t": t, "values": values}) + "\n" for t, values in samples
    ]


def test_sources_add_up_and_parts_do_not_count_twice() -> None:
    rapl = Source(
        "rapl",
        tuple(Rail(name, JOULE, ("file",), 1000.0) for name in ("package-0", "package-0:core")),
    )
    gpu = Source("nvidia-smi", (), ("nvidia-smi",))
    written = [
        *lines(
            "rapl", *((t, {"package-0": 20.0 * t, "package-0:core": 9.0 * t}) for t in range(6))
        ),
        *lines("nvidia-smi", *((t, {"gpu0": 30.0}) for t in range(6))),
        '{"source": "nvidia-smi", "t": 6, "val',  # the process ended while it wrote
    ]
    samples = Samples.parse((rapl, gpu), written)
    energy = samples.between(1.0, 4.0)
    assert energy is not None
    assert (energy.joules, energy.seconds, energy.samples) == (pytest.approx(150.0), 3.0, 4)


def test_two_samples_are_too_few() -> None:
    source = Source("tegrastats", (), ("tegrastats",))
    samples = Samples.parse((source,), lines("tegrastats", (0, {"VDD_IN": 5}), (1, {"VDD_IN": 5})))
    assert samples.between(0.0, 1.0) is None
    assert Samples((), {}).between(0.0, 1.0) is None


# The process that samples, on a stand-in for the kernel's files


@pytest.fixture
def board(tmp_path: Path) -> Path:
    chip = tmp_path / "sys/class/hwmon/hwmon1"
    chip.mkdir(parents=True)
    for name, text in {
        "name": "ina3221",
        "in1_label": "VDD_IN",
        "in1_input": "5000",
        "curr1_input": "800",
    }.items():
        (chip / name).write_text(text + "\n", encoding="ascii")
    return tmp_path


def test_monitor_samples_beside_the_work_on_one_clock(board: Path, tmp_path: Path) -> None:
    with PowerMonitor(root=board, path=str(tmp_path), idle_s=0.3) as monitor:
        begin = time.monotonic()
        (board / "sys/class/hwmon/hwmon1/curr1_input").write_text("2400\n", encoding="ascii")
        time.sleep(0.4)
        end = time.monotonic()
    assert monitor.reason is None
    assert monitor.idle_span is not None
    idle, busy = monitor.samples.between(*monitor.idle_span), monitor.samples.between(begin, end)
    assert idle is not None
    assert busy is not None
    # 5 V times 0.8 A and 2.4 A. Only the span between the last sample before the step and the
    # first behind it is not exact: on a busy machine perhaps a quarter of these 0.3 and 0.4 s.
    assert idle.joules / idle.seconds == pytest.approx(4.0, rel=0.25)
    assert busy.joules / busy.seconds == pytest.approx(12.0, rel=0.25)


def test_monitor_follows_a_command(tmp_path: Path) -> None:
    tool = tmp_path / "tegrastats"
    tool.write_text(
        "#!/bin/sh\nwhile true; do echo 'RAM 1/2MB VDD_IN 6000mW/1mW'; sleep 0.02; done\n",
        encoding="utf-8",
    )
    tool.chmod(0o755)
    with PowerMonitor(root=tmp_path, path=str(tmp_path), idle_s=0.3) as monitor:
        pass
    assert monitor.idle_span is not None
    idle = monitor.samples.between(*monitor.idle_span)
    assert idle is not None
    assert idle.joules / idle.seconds == pytest.approx(6.0)
    listed = subprocess.run(["ps", "-ef"], capture_output=True, text=True, check=False).stdout
    assert str(tool) not in listed  # it ended with the monitor


def test_command_that_tells_nothing_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.power.monitor._FIRST_SAMPLE_S", 0.2)
    tool = tmp_path / "tegrastats"
    tool.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    tool.chmod(0o755)
    with PowerMonitor(root=tmp_path, path=str(tmp_path), idle_s=0.0) as monitor:
        pass
    assert monitor.reason == "tegrastats: there, but tells no power"


def test_nothing_is_started_where_there_is_nothing_to_read(tmp_path: Path) -> None:
    begin = time.monotonic()
    with PowerMonitor(root=tmp_path, path=str(tmp_path), idle_s=60.0) as monitor:
        assert monitor.sources == ()
    assert time.monotonic() - begin < 30  # it does not wait for the idle machine
    assert monitor.reason is not None
    with PowerMonitor(wanted=False, root=tmp_path) as monitor:
        assert monitor.reason == "not asked for"


def test_rail_in_watts_is_a_power(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("2500000", encoding="ascii")
    assert Rail("VIN", WATT, (str(tmp_path / "p"),)).read() == 2.5
