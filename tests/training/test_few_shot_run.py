"""One whole run: from folders of pictures to a checkpoint that loads, and its episodes measured."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
cv2 = pytest.importorskip("cv2")

from edgekit.errors import ConfigError  # noqa: E402
from edgekit.loading import load  # noqa: E402
from edgekit.training.trainer import train_model  # noqa: E402
from edgekit.types import Task  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(0)
    for part, classes in {"train": 3, "val": 2, "test": 2}.items():
        for number in range(classes):
            inside = folder / part / f"{part}{number}"
            inside.mkdir(parents=True)
            for k in range(4):
                picture = rng.integers(0, 256, (20, 24, 3), np.uint8)
                assert cv2.imwrite(str(inside / f"{k}.png"), picture)
    return folder


@pytest.fixture
def few_shot(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark; benchmarks are run from the checkout and not installed."""
    monkeypatch.syspath_prepend(str(root))
    return importlib.import_module("benchmarks.few_shot")


SETTINGS = ("batch=4", "tuning=0.5", "ways=2", "queries=2", "metric=cosine")


def test_training_writes_a_checkpoint_that_needs_nothing_else(
    few_shot: Any, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.pt"
    report = train_model("dcap_small", out, data=data, steps=2, seed=1, settings=SETTINGS)
    document = report.to_dict()
    assert document["steps"] == 2
    assert set(document["losses"]) == {"classes", "episodes", "support"}
    assert not (tmp_path / "model.pt.training").exists()
    loaded = load(out)
    assert loaded.task is Task.EMBEDDING
    assert loaded.arch == "zoo:dcap_small(base_classes=3)"
    assert loaded.capture_teacher() is not None

    record = tmp_path / "rows.json"
    rows = [f"one={out}", f"two={out},{out}"]
    options = ["--ways", "2", "--shots", "1", "--queries", "3", "--episodes", "7"]
    arguments = [*rows, "--data", str(data), "--against", "one", *options, "--json", str(record)]
    assert few_shot.main(arguments) == 0
    assert "1-shot  one" in capsys.readouterr().out
    one, two = json.loads(record.read_text())["rows"]
    assert one["seeds"] * 2 == two["seeds"]
    assert two["difference"] == {"mean": 0.0, "low": 0.0, "high": 0.0}  # the same network
    assert one["difference"] is None
    assert one["cosine"] is None  # a checkpoint is its own float network


def test_nothing_is_written_for_data_that_does_not_fit(data: Path, tmp_path: Path) -> None:
    out, settings = tmp_path / "model.pt", ("ways=2",)
    with pytest.raises(ConfigError, match="class 0 has 4 images, too few"):
        train_model("dcap_small", out, data=data, steps=2, settings=settings)
    assert list(tmp_path.iterdir()) == []


def test_benchmark_refuses_what_it_cannot_measure(
    few_shot: Any, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert few_shot.main(["a=missing.pt", "--data", str(data)]) == 2
    assert "neither a checkpoint nor DIRECTORY:TARGET" in capsys.readouterr().err
    assert few_shot.main(["missing.pt", "--data", str(data)]) == 2
    assert "expected NAME=SOURCE" in capsys.readouterr().err
