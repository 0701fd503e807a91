"""Whole benchmarks on a device, and everything that can end one early.

The device is this machine behind a real sshd. The fixture `server` checks behind every test that
nothing is left of it on the device.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from edgekit import machine_tables
from edgekit.bench import bench
from edgekit.cli import main
from edgekit.errors import ConfigError, LoadError, OutputError
from edgekit.remote.errors import ConnectionLostError, DeviceError, RunnerKilledError
from edgekit.remote.run import bench_on_device, renamed
from edgekit.types import Progress

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

SHORT: dict[str, Any] = {
    "blocks": 2,
    "block_seconds": 0.02,
    "warmup_seconds": 0.01,
    "threads": 1,
    "energy": False,
    "targets": ["onnxruntime"],
}
ENDLESS = {**SHORT, "blocks": 1000}


def form(value: Any) -> Any:
    """A JSON value without its figures: keys, lengths and kinds."""
    if isinstance(value, dict):
        return {key: form(item) for key, item in value.items()}
    if isinstance(value, list):
        return [form(item) for item in value]
    return type(value).__name__


def test_command_gives_the_document_of_a_local_run(
    server: Any, result_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab(server, 'targets = ["onnxruntime"]')
    monkeypatch.chdir(server.home)
    words = ["bench", str(result_dir), "--device", "lab", "--json", "--blocks", "2", "--no-energy"]
    words += ["--seconds", "0.02", "--warmup", "0.01", "--threads", "1", "--out", "found.json"]
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(io.StringIO()):
        assert main(words) == 0
    there = json.loads(out.getvalue())
    assert there == json.loads((server.home / "found.json").read_text(encoding="utf-8"))
    assert "device lab: " in machine_tables.bench(there)
    device = there.pop("device")

    here = json.loads(json.dumps(bench([result_dir], **SHORT).to_dict()))
    assert there.keys() == here.keys()
    assert form(there["lanes"]) == form(here["lanes"])
    assert there["conditions"].keys() == here["conditions"].keys()
    assert there["settings"] == here["settings"]
    for key in ("name", "source", "model", "size_bytes", "inputs"):
        assert [lane[key] for lane in there["lanes"]] == [lane[key] for lane in here["lanes"]]
    for ours, theirs in zip(there["comparisons"], here["comparisons"], strict=True):
        assert (ours["lane"], ours["baseline"]) == (theirs["lane"], theirs["baseline"])

    assert (device["name"], device["complete"]) == ("lab", True)
    # The manifest and both networks, not the codes.
    networks = sum(lane["size_bytes"] for lane in here["lanes"])
    assert networks < device["copied_bytes"] < networks + 5000
    assert server.left == []


def lab(server: Any, more: str = "") -> None:
    """Write a `devices.toml` with the device `lab` into the home folder."""
    device = server.device()
    lines = [
        "[devices.lab]",
        f'host = "{device.host}"',
        f"port = {device.port}",
        f'user = "{device.user}"',
        f'python = "{device.python}"',
        f'workdir = "{device.workdir}"',
        more,
    ]
    (server.home / "devices.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


# Ended early


def interrupting(action: Callable[[], None], stage: str) -> Progress:
    """A progress that does something once when a stage begins."""
    done: list[bool] = []

    def show(text: str, _fraction: float) -> None:
        if stage in text and not done:
            done.append(True)
            action()

    return show


def kill(processes: Callable[[], list[int]]) -> Callable[[], None]:
    def action() -> None:
        found = processes()
        assert found
        for pid in found:
            os.kill(pid, signal.SIGKILL)

    return action


def test_connection_killed_midway_keeps_finished_rounds(server: Any, result_dir: Path) -> None:
    model = result_dir / "float/model.onnx"
    with pytest.raises(ConnectionLostError, match="finished rounds are kept in") as caught:
        bench_on_device(
            [model],
            server.device(),
            ENDLESS,
            progress=interrupting(kill(server.sessions), "block 4 of"),
        )
    kept = Path(caught.value.message.split("'")[-2])
    assert kept.is_relative_to(server.home / ".cache")
    document = json.loads(kept.read_text(encoding="utf-8"))
    (lane,) = document["lanes"]
    assert len(lane["blocks"]) >= 2
    assert lane["model"] == str(model)
    assert document["device"]["complete"] is False
    assert server.soon(lambda: not server.runners())


def test_runner_killed_midway(server: Any, result_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    with pytest.raises(RunnerKilledError, match=f"kept in '{out}'") as caught:
        bench_on_device(
            [result_dir / "float/model.onnx"],
            server.device(),
            ENDLESS,
            out=out,
            progress=interrupting(kill(server.runners), "block 4 of"),
        )
    assert "killed by a signal" in caught.value.message or "137" in caught.value.message
    assert len(json.loads(out.read_text(encoding="utf-8"))["lanes"][0]["blocks"]) >= 2
    assert server.left == []


def test_error_of_the_device_part(server: Any, result_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"on .*@127\.0\.0\.1:.*: .*blocks"):
        bench_on_device([result_dir / "float/model.onnx"], server.device(), {**SHORT, "blocks": 1})
    assert server.left == []


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_signal_to_the_command(
    server: Any, result_dir: Path, sent: signal.Signals, code: int
) -> None:
    lab(server)
    words = [sys.executable, "-m", "edgekit", "bench", str(result_dir / "float/model.onnx")]
    words += ["--device", "lab", "--targets", "onnxruntime", "--blocks", "1000"]
    words += ["--seconds", "0.02", "--warmup", "0", "--no-energy", "--out", "found.json"]
    command = subprocess.Popen(
        words,
        cwd=server.home,
        env={**os.environ, "TMPDIR": str(server.home)},  # where SIGKILL leaves things behind
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    kept = server.home / "found.json"
    try:
        assert server.soon(kept.exists, 60)
        assert server.runners()
        command.send_signal(sent)
        _, told = command.communicate(timeout=60)
    finally:
        command.kill()
        command.communicate()
    assert command.returncode == code
    assert code < 0 or b"hint: finished rounds are kept in 'found.json'" in told
    assert json.loads(kept.read_text(encoding="utf-8"))["device"]["complete"] is False
    # After SIGKILL nobody is left here to clear up: the guard on the device does.
    assert server.soon(lambda: not server.runners())
    assert server.soon(lambda: server.left == [])


# Refused before anything is copied


def test_device_without_python(server: Any, result_dir: Path) -> None:
    with pytest.raises(DeviceError, match="no Python: 'python9' is not there") as caught:
        bench_on_device([result_dir], server.device(python="python9"), SHORT)
    assert "devices.toml" in caught.value.hint


@pytest.mark.parametrize(
    ("facts", "message", "hint"),
    [
        ('{"python": [3, 8, 10], "numpy": "1.24.4"}', "is Python 3.8.10", "JetPack 6"),
        (
            '{"python": [3, 10, 12], "numpy": null, "problem": "No module named numpy"}',
            "cannot import NumPy: No module named numpy",
            "-m pip install 'numpy>=1.24,<3'",
        ),
    ],
)
def test_device_with_another_python(
    server: Any, result_dir: Path, tmp_path: Path, facts: str, message: str, hint: str
) -> None:
    python = tmp_path / "python3"
    python.write_text(f"#!/bin/sh\necho Welcome to bench\necho '{facts}'\n", encoding="utf-8")
    python.chmod(0o755)
    with pytest.raises(DeviceError) as caught:
        bench_on_device([result_dir], server.device(python=str(python)), SHORT)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_workdir_that_does_not_exist(server: Any, result_dir: Path) -> None:
    with pytest.raises(DeviceError, match="no folder can be made in '/surely/absent'") as caught:
        bench_on_device([result_dir], server.device(workdir="/surely/absent"), SHORT)
    assert "No such file" in caught.value.message


def test_damaged_result_is_refused_as_it_is_here(
    server: Any, result_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(LoadError, match="does not exist"):
        bench_on_device([tmp_path / "absent"], server.device(), SHORT)


def test_place_for_the_document_is_looked_at_first(result_dir: Path, tmp_path: Path) -> None:
    from edgekit.remote.address import Device

    device = Device("never", "127.0.0.1", "nobody", 1)  # it is not even connected to
    with pytest.raises(OutputError, match="its folder does not exist"):
        bench_on_device([result_dir], device, SHORT, out=tmp_path / "absent/found.json")


def test_paths_of_the_device_are_renamed_everywhere() -> None:
    value = {"a/0/net int8": ["in a/0/net/x", 3, None, {"k": True}]}
    expected = {"out/net int8": ["in out/net/x", 3, None, {"k": True}]}
    assert renamed(value, {"a/0/net": "out/net"}) == expected
