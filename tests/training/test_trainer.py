"""``edgekit zoo train``: from a folder of pictures to a checkpoint that loads by itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
torch = pytest.importorskip("torch")

from edgekit.cli import main  # noqa: E402
from edgekit.errors import ConfigError, OutputError, UnsupportedError  # noqa: E402
from edgekit.loading import load  # noqa: E402
from edgekit.procedural.scenes import draw_scene  # noqa: E402
from edgekit.training.trainer import train_model  # noqa: E402
from edgekit.types import Task  # noqa: E402

NAME = "fcl_gan_small(width=4)"
FAST = ["--steps", "2", "--set", "crop=32", "--set", "batch=1"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index in range(4):
        scene = draw_scene(np.random.default_rng(index), 48)
        assert cv2.imwrite(str(folder / f"{index}.png"), scene[..., ::-1])
    return folder


def test_command_writes_a_checkpoint(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.pt"
    words = ["zoo", "train", NAME, "--data", str(photos), "--out", str(out), "--json", *FAST]
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    assert (document["steps"], document["metric"]) == (2, "PSNR (dB)")
    assert document["baseline_name"] == "the blurred pictures themselves"
    assert document["score"] == max(entry["score"] for entry in document["history"])
    assert document["size_bytes"] == out.stat().st_size
    loaded = load(out)
    assert (loaded.arch, loaded.task) == (f"zoo:{NAME}", Task.IMAGE_TO_IMAGE)
    with torch.no_grad():
        restored = loaded.module(torch.rand(1, 3, 16, 24))["restored"]
    assert restored.shape == (1, 3, 16, 24)


def test_table_names_the_baseline(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.pt"
    assert main(["zoo", "train", NAME, "--data", str(photos), "--out", str(out), *FAST]) == 0
    shown = capsys.readouterr().out
    assert "PSNR (dB)" in shown
    assert "the blurred pictures themselves" in shown
    assert f"written to {out}" in shown


def test_same_seed_same_bytes(photos: Path, tmp_path: Path) -> None:
    made = []
    for name in ("a.pt", "b.pt"):
        settings = ["crop=32", "batch=1"]
        train_model(NAME, tmp_path / name, data=photos, steps=2, settings=settings)
        made.append(load(tmp_path / name).module.state_dict())
    assert all(torch.equal(value, made[1][key]) for key, value in made[0].items())


def test_unfinished_run_is_not_overwritten(photos: Path, tmp_path: Path) -> None:
    state = tmp_path / "model.pt.training"
    state.write_bytes(b"")
    with pytest.raises(OutputError, match="holds an unfinished training") as caught:
        train_model(NAME, tmp_path / "model.pt", data=photos, steps=2)
    assert "--resume" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == [state.name]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("resnet50", ConfigError, "unknown zoo network"),
        ("efficientnet_lite0", UnsupportedError, "does not train 'efficientnet_lite0'"),
        ("fcl_gan_small(depth=3)", ConfigError, "depth"),
    ],
)
def test_network_that_is_not_trained(
    name: str, error: type[Exception], message: str, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        train_model(name, tmp_path / "model.pt", data=photos, steps=2, settings=["crop=32"])
    assert list(tmp_path.iterdir()) == []


def test_wrong_options_cost_no_work(tmp_path: Path) -> None:
    missing = tmp_path / "none" / "model.pt"
    with pytest.raises(OutputError, match="its folder does not exist"):
        train_model(NAME, missing, steps=2)
    with pytest.raises(OutputError, match="it is a folder"):
        train_model(NAME, tmp_path, steps=2)
    with pytest.raises(ConfigError, match="budget"):
        train_model(NAME, tmp_path / "model.pt")
    with pytest.raises(ConfigError, match="--device tpu"):
        train_model(NAME, tmp_path / "model.pt", steps=2, device="tpu")
    with pytest.raises(ConfigError, match="is not a folder"):
        train_model(NAME, tmp_path / "model.pt", steps=2, data=tmp_path / "none")
    assert list(tmp_path.iterdir()) == []
