"""`edgekit synthesize`: a set that any other program can calibrate with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekit.calibration import _budget
from edgekit.calibration.distill import Distill
from edgekit.capture import capture
from edgekit.cli import main
from edgekit.errors import CalibrationError, ConfigError, OutputError
from edgekit.loading import load
from edgekit.options import InputOption
from edgekit.synthesize import Synthesis, synthesize
from edgekit.types import Preprocessing, Task

Capture = pytest.CaptureFixture[str]
SHAPE = ("--arch", "tiny:build", "--input", "input:1x3x32x32", "--preprocessing", "mean=0.5")
WORDS = ("synthesize", "tiny.pt", *SHAPE, "--task", "classification", "-n", "6")


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_budget, "_ROUNDS", (3, 3))


def run(**options: Any) -> Synthesis:
    """Synthesize six inputs for `tiny.pt`."""
    known = {
        "arch": "tiny:build",
        "inputs": [InputOption("input", (1, 3, 32, 32))],
        "preprocessing": Preprocessing((0.5,)),
        "task": Task.CLASSIFICATION,
        "samples": 6,
    }
    return synthesize("tiny.pt", **(known | options))


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"tiny.py", "tiny.pt", "__pycache__"}


def test_files_and_what_is_told_of_them(tiny: Path) -> None:
    told: list[tuple[str, float]] = []
    made = run(out="calib.npz", progress=lambda *words: told.append(words))
    has_opencv = made.gallery is not None
    assert files(tiny) == {"calib.npz"} | ({"calib.png"} if has_opencv else set())
    arrays = arrays_of(made.path)
    assert set(arrays) == {"input", "labels", "manifest"}
    assert arrays["input"].shape == (6, 3, 32, 32)
    assert arrays["input"].dtype == np.float32
    assert float(np.abs(arrays["input"]).max()) <= 0.5  # pixels 0 to 1, less 0.5
    manifest = json.loads(str(arrays["manifest"]))
    assert (manifest["engine"], manifest["arch"], manifest["seed"]) == ("distill", "tiny:build", 0)
    assert len(manifest["model_sha256"]) == 64
    assert manifest["facts"]["rounds"] == 3
    assert told[0][0].startswith("distill 1/3")
    assert told[-1] == ("done", 1.0)


def test_labels_are_what_the_network_sees(tiny: Path) -> None:
    arrays = arrays_of(run().path)
    names: dict[str, Any] = {}
    exec((tiny / "tiny.py").read_text(encoding="utf-8"), names)
    network = names["build"]().eval()
    network.load_state_dict(torch.load(tiny / "tiny.pt", weights_only=True))
    with torch.no_grad():
        expected = network(torch.from_numpy(arrays["input"])).argmax(1)
    assert arrays["labels"].tolist() == expected.tolist()


def test_distilled_set_is_made_for_other_quantizers(tiny: Path) -> None:
    arrays = arrays_of(run().path)
    loaded = load("tiny.pt", arch="tiny:build", inputs=[InputOption("input", (1, 3, 32, 32))])
    model = capture(
        loaded.module,
        loaded.inputs,
        task=Task.CLASSIFICATION,
        preprocessing=Preprocessing((0.5,)),
    )
    engine = Distill(samples=6)
    expected, plain = (e.synthesize(model).inputs[0] for e in (engine.portable(), engine))
    assert np.array_equal(arrays["input"], expected.numpy())
    assert not torch.equal(expected, plain)
    assert json.loads(str(arrays["manifest"]))["facts"]["padding"] == engine.portable().padding


def test_gallery_shows_the_images(tiny: Path) -> None:
    del tiny
    cv2 = pytest.importorskip("cv2", reason="writes the picture")
    made = run(out="set.npz")
    assert made.gallery == Path("set.png")
    sheet = cv2.imread("set.png")[:, :, ::-1]  # the library's order is BGR
    arrays = arrays_of(made.path)
    first = int(np.flatnonzero(arrays["labels"] == arrays["labels"].min())[0])
    image = np.rint((arrays["input"][first] + 0.5) * 255).astype(np.uint8).transpose(1, 2, 0)
    np.testing.assert_array_equal(sheet[2:66, 2:66], image.repeat(2, 0).repeat(2, 1))


def test_seed_decides(tiny: Path) -> None:
    del tiny
    one, two, other = (
        arrays_of(run(out=f"{name}.npz", seed=seed).path)["input"]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_checkpoint_keeps_a_finished_run(tiny: Path) -> None:
    first = arrays_of(run(out="a.npz", checkpoint="state.pt").path)
    assert (tiny / "state.pt").is_file()
    told: list[str] = []
    again = run(out="b.npz", checkpoint="state.pt", progress=lambda text, _: told.append(text))
    assert told == ["done"]  # nothing was left to do
    assert np.array_equal(arrays_of(again.path)["input"], first["input"])
    with pytest.raises(CalibrationError, match="another options"):
        run(out="c.npz", checkpoint="state.pt", seed=1)
    assert not (tiny / "c.npz").exists()


# -- refusals: before any work ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"engine": "renorm"}, ConfigError, "only in its own pass"),
        ({"engine": "noise"}, ConfigError, "unknown engine"),
        ({"samples": 0}, ConfigError, "samples is 0"),
        ({"out": "calib.npy"}, OutputError, "the file is an .npz"),
        ({"out": "calib"}, OutputError, "the file is an .npz"),
        ({"out": "nowhere/calib.npz"}, OutputError, "the folder 'nowhere' does not exist"),
        ({"out": "there.npz"}, OutputError, "'there.npz' exists already"),
        ({"out": "picture.npz"}, OutputError, "'picture.png' exists already"),
        ({"device": "tpu"}, ConfigError, "--device tpu"),
    ],
)
def test_refusals(options: dict[str, Any], error: type, said: str, tiny: Path) -> None:
    (tiny / "there.npz").write_text("mine")
    (tiny / "picture.png").write_text("mine")
    with pytest.raises(error) as caught:
        run(**options)
    assert said in caught.value.message  # type: ignore[attr-defined]
    assert files(tiny) == {"there.npz", "picture.png"}
    assert (tiny / "there.npz").read_text() == (tiny / "picture.png").read_text() == "mine"


def test_no_batch_norm_names_what_works(tiny: Path) -> None:
    (tiny / "tiny.py").write_text("from torch import nn\nbuild = lambda: nn.Conv2d(3, 2, 3)\n")
    module = torch.nn.Conv2d(3, 2, 3)
    torch.save(module.state_dict(), "tiny.pt")
    with pytest.raises(CalibrationError, match="no BatchNorm"):
        run()
    assert files(tiny) == set()


# -- the command --------------------------------------------------------------------------------


def test_command_with_json(tiny: Path, capsys: Capture) -> None:
    assert main([*WORDS, "-o", "calib.npz", "--json"]) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert document["schema_version"] == 1
    assert (document["file"], document["engine"], document["samples"]) == (
        "calib.npz",
        "distill",
        6,
    )
    assert document["arrays"] == {"input": [6, 3, 32, 32]}
    assert document["size_bytes"] == (tiny / "calib.npz").stat().st_size
    assert document["facts"]["rounds"] == 3
    assert document["notes"][0].startswith("distill: 6 inputs, 3 rounds")
    assert "done" in printed.err


def test_command_prints_a_table(tiny: Path, capsys: Capture) -> None:
    del tiny
    assert main([*WORDS, "--out", "calib.npz"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["array", "shape"]
    assert any(line.split() == ["input", "6x3x32x32"] for line in lines)
    assert any(line.startswith("written to calib.npz (") for line in lines)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--engine", "renorm"), "config", "only in its own pass"),
        (("-o", "calib.txt"), "output", "the file is an .npz"),
        (("-n", "0"), "usage", "Invalid value for '-n'"),
    ],
)
def test_command_refuses(
    words: tuple[str, ...], code: str, said: str, tiny: Path, capsys: Capture
) -> None:
    assert main([*WORDS, *words, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == code
    assert said in error["message"]
    assert error["hint"]
    assert files(tiny) == set()


def test_set_calibrates_a_quantization(tiny: Path, capsys: Capture) -> None:
    pytest.importorskip("onnxruntime", reason="runs the exported file")
    assert main([*WORDS, "-o", "calib.npz"]) == 0
    words = ["quantize", "tiny.pt", *SHAPE, "--targets", "onnxruntime", "--out", "result"]
    capsys.readouterr()
    assert main([*words, "--calibration", "calib.npz", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["calibration"]
    assert (told["method"], told["samples"]) == ("distill", 6)
    assert "inputs of 'calib.npz', made by distill" in told["notes"]
    assert "calibration calib.npz (named by --calibration)" in told["notes"]
    assert json.loads((tiny / "result" / "recipe.json").read_text())["calibration"] == "calib.npz"
