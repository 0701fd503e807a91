"""The benchmark of restored photographs: figures against ones that are worked out by hand."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the host part needs the extra 'torch'")
cv2 = pytest.importorskip("cv2", reason="reading pictures needs the extra 'images'")


@pytest.fixture
def benchmark(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module; benchmarks are run from the checkout and not installed."""
    monkeypatch.syspath_prepend(str(root))
    return importlib.import_module("benchmarks.restoration")


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        picture = cv2.resize(rng.integers(0, 256, (9, 11, 3), np.uint8), (61, 47))
        assert cv2.imwrite(str(folder / f"{number}.png"), picture)
    return folder


def test_psnr(benchmark: Any) -> None:
    wanted = np.zeros((2, 2, 3))
    # an error of 255 / 10 everywhere is 20 dB by definition
    assert benchmark.psnr(wanted + 25.5, wanted) == pytest.approx(20.0)


def test_pictures_are_cut_blurred_and_the_same_each_time(benchmark: Any, photographs: Path) -> None:
    first = list(benchmark._pairs(photographs, 3, (40, 50), seed=1))
    again = list(benchmark._pairs(photographs, 3, (40, 50), seed=1))
    assert len(first) == 3
    for (blurred, sharp), (other, _) in zip(first, again, strict=True):
        assert blurred.shape == sharp.shape == (40, 50, 3)
        assert np.array_equal(blurred, other)
        assert (
            np.abs(np.diff(blurred.astype(int), axis=0)).mean()
            < np.abs(np.diff(sharp.astype(int), axis=0)).mean()
        )  # a blurred picture changes less from pixel to pixel
    assert list(benchmark._pairs(photographs, 3, (48, 50), seed=1)) == []  # 47 rows are too few


def test_row_of_a_checkpoint(
    benchmark: Any, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgekit.loading import load
    from edgekit.zoo import save_model

    model, record = save_model("fcl_gan_small", tmp_path / "model.pt"), tmp_path / "rows.json"
    size = ["--size", "45x54", "--json", str(record)]  # padded to 48x56
    assert benchmark.main(["--photographs", str(photographs), *size, f"ours={model}"]) == 0
    assert "ours: " in capsys.readouterr().out
    (row,) = json.loads(record.read_text())["rows"]
    network, gains = load(model).module, []
    for blurred, sharp in benchmark._pairs(photographs, 100, (45, 54), 0):
        x = torch.from_numpy(blurred).permute(2, 0, 1)[None] / 255
        x = torch.nn.functional.pad(x, (0, 2, 0, 3), mode="reflect")
        with torch.no_grad():
            y = network(x)["restored"][0, :, :45, :54].permute(1, 2, 0).numpy()
        errors = [np.mean((z - sharp.astype(float)) ** 2) for z in (np.floor(y * 255), blurred)]
        gains.append(10 * np.log10(errors[1] / errors[0]))
    # float sums in another order may move single pixels over the edge of truncation
    assert row["gain"]["mean"] == pytest.approx(np.mean(gains), abs=1e-3)
    assert row["to_float"] == []


def test_rows_and_sizes_that_do_not_fit(
    benchmark: Any, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main(["--photographs", str(photographs), "a=missing.pt"]) == 2
    assert "'missing.pt' is neither a checkpoint nor DIRECTORY:TARGET" in capsys.readouterr().err
    assert benchmark.main(["--photographs", str(photographs), "only-a-name"]) == 2
    assert "expected NAME=SOURCE" in capsys.readouterr().err
