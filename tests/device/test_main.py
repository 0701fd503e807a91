"""The protocol of ``python -m edgekit.device``, and that nothing of it outlives its reader."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

COMMAND = [sys.executable, "-m", "edgekit.device"]


def run(*arguments: str, request: object = None, cwd: Path) -> tuple[int, list[dict[str, Any]]]:
    """Run a command and return its exit code and events."""
    text = "" if request is None else json.dumps(request)
    done = subprocess.run(
        [*COMMAND, *arguments], input=text, capture_output=True, text=True, cwd=cwd, timeout=120
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_bench_answers_with_the_document_of_the_command_line(result: Path, tmp_path: Path) -> None:
    request = {
        "paths": [str(result / "onnxruntime/model.onnx")],
        "targets": ["onnxruntime"],
        "shapes": {"x": [1, 3, 16, 16]},
        "batch": 2,
        "blocks": 3,
        "block_seconds": 0.01,
        "warmup_seconds": 0,
    }
    code, events = run("bench", request=request, cwd=tmp_path)
    assert (code, events[-1]["event"]) == (0, "result")
    document = events[-1]["document"]
    assert document["schema_version"] == 1
    assert document["lanes"][0]["inputs"] == {"x": [2, 3, 16, 16]}
    told = [event for event in events[:-1] if event["event"] == "progress"]
    assert told
    assert all(0 <= event["done"] <= event["total"] and event["text"] for event in told)
    # What is finished before the last round, should the connection break in it.
    (partial,) = [event["document"] for event in events if event["event"] == "partial"]
    assert [len(lane["blocks"]) for lane in partial["lanes"]] == [2]
    assert [e["event"] for e in events].count("result") == 1


def test_doctor_needs_no_request(tmp_path: Path) -> None:
    code, events = run("doctor", cwd=tmp_path)
    assert code == 0
    states = {r["name"]: r["state"] for r in events[-1]["document"]["runtimes"]}
    assert states["onnxruntime"] == "works"


def test_run_computes_what_the_runtime_computes(result: Path, tmp_path: Path) -> None:
    import onnxruntime

    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 3, 16, 16)).astype(np.float32)
    np.savez(tmp_path / "in.npz", x=x)
    (tmp_path / "request.json").write_text(json.dumps({"result": str(result)}))
    code, events = run(
        "run", "request.json", "inputs=in.npz", "outputs=out.npz", "batch=4", "threads=1",
        cwd=tmp_path,
    )  # fmt: skip
    assert (code, events[-1]["document"]["target"]) == (0, "onnxruntime"), events
    session = onnxruntime.InferenceSession(
        str(result / "onnxruntime/model.onnx"), providers=["CPUExecutionProvider"]
    )
    with np.load(tmp_path / "out.npz") as archive:
        (name,) = archive.files
        # The same kernels on the same numbers, cut in other batches: equal but for the last bits.
        np.testing.assert_allclose(archive[name], session.run(None, {"x": x})[0], rtol=1e-5)
    assert name == "file"


@pytest.mark.parametrize(
    ("arguments", "request_text", "kind", "told"),
    [
        (["bench"], '{"paths": [], "speed": 1}', "ConfigError", "no option speed"),
        (["bench"], "{}", "ConfigError", "needs paths"),
        (["bench"], "[1]", "ConfigError", "list, not an object"),
        (["bench"], "{", "ConfigError", "not JSON"),
        (["bench"], '{"paths": ["missing"]}', "LoadError", "does not exist"),
        (["doctor", "loud=1"], "", "ConfigError", "no option loud"),
        (["bench", "missing.json"], "", "LoadError", "cannot be read"),
        (["dance"], "", "ConfigError", "cannot read the arguments"),
        (["bench", "--now"], "", "ConfigError", "cannot read the arguments"),
        ([], "", "ConfigError", "cannot read the arguments"),
        (["run", "model=a.onnx"], "", "ConfigError", "needs target, inputs, outputs"),
    ],
)
def test_errors_are_events(
    arguments: list[str], request_text: str, kind: str, told: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [*COMMAND, *arguments],
        input=request_text,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    (event,) = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 2
    assert (event["event"], event["error"]["kind"]) == ("error", kind)
    assert told in event["error"]["message"]
    assert set(event["error"]) == {"kind", "message", "hint"}


def test_plain_prints_the_document_alone(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "--plain", "doctor"], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["schema_version"] == 1


def test_a_module_in_the_current_folder_shadows_none(result: Path, tmp_path: Path) -> None:
    if sys.version_info < (3, 11):
        pytest.skip("Python 3.10 always looks in the current folder first")
    (tmp_path / "secrets.py").write_text("raise SystemExit('imported')")
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    request = {"result": str(result), "inputs": "none.npz", "outputs": "y.npz"}
    done = subprocess.run(
        [*COMMAND, "run"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=60,
    )
    assert json.loads(done.stdout.splitlines()[-1])["error"]["message"].count("none.npz") >= 1


def start(family: Any, result: Path, *options: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start a benchmark that would take an hour, and wait until its worker runs."""
    job = subprocess.Popen(
        [*COMMAND, *options, "bench"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**family.environment, "TMPDIR": str(folder)},
        cwd=folder,
    )
    request = {"paths": [str(result / "onnxruntime/model.onnx")], "block_seconds": 3600}
    request["targets"] = ["onnxruntime"]
    assert job.stdin is not None
    assert job.stdout is not None
    job.stdin.write(json.dumps(request).encode() + b"\n")
    job.stdin.flush()
    if "--tied" not in options:
        job.stdin.close()
    while b"block 1" not in job.stdout.readline():
        pass
    while len(family.alive()) < 3:  # the watcher, the job and its worker
        assert job.poll() is None
    return job


def close_output(job: subprocess.Popen[bytes]) -> None:
    assert job.stdout is not None
    job.stdout.close()


def close_input(job: subprocess.Popen[bytes]) -> None:
    assert job.stdin is not None
    job.stdin.close()


@pytest.mark.parametrize(
    ("options", "end", "code"),
    [
        ((), lambda job: job.send_signal(signal.SIGTERM), 130),
        ((), lambda job: job.send_signal(signal.SIGINT), 130),
        ((), lambda job: job.send_signal(signal.SIGHUP), 130),
        ((), lambda job: job.kill(), -signal.SIGKILL),
        ((), close_output, 130),
        (("--tied",), close_input, 130),
    ],
    ids=["SIGTERM", "SIGINT", "SIGHUP", "SIGKILL", "closed output", "closed input"],
)
def test_nothing_outlives_its_reader(
    family: Any,
    result: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    end: Callable[[subprocess.Popen[bytes]], None],
    code: int,
) -> None:
    job = start(family, result, *options, folder=tmp_path)
    try:
        end(job)
        assert job.wait(20) == code
        assert family.wait_until_gone(20) == []
        assert [path.name for path in tmp_path.glob("edgekit-*")] == []  # temporary folders
    finally:
        for number in family.alive():
            os.kill(number, signal.SIGKILL)


def test_a_job_that_crashes_is_an_error(family: Any, result: Path, tmp_path: Path) -> None:
    job = start(family, result, folder=tmp_path)
    assert job.stdout is not None
    lines = [path.read_text() for path in Path(f"/proc/{job.pid}/task").glob("*/children")]
    (child,) = " ".join(lines).split()
    os.kill(int(child), signal.SIGKILL)
    last = job.stdout.read().splitlines()[-1]
    assert job.wait(20) == 1
    assert json.loads(last)["error"]["kind"] == "VerificationError"
    assert "SIGKILL" in json.loads(last)["error"]["message"]
    assert family.wait_until_gone(20) == []
