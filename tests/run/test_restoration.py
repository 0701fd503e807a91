"""Restoring pictures: against ONNX Runtime alone on a picture padded by ``numpy.pad``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgekit.cli import main
from edgekit.errors import ConfigError, LoadError, OutputError
from edgekit.run import run
from edgekit.types import Task

cv2 = pytest.importorskip("cv2", reason="opencv is not installed")
Output = Callable[[Path, np.ndarray], np.ndarray]


def smooth(height: int, width: int, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    """A colour picture without flat areas, BGR as OpenCV writes it."""
    rng = np.random.default_rng(seed)
    top = np.iinfo(dtype).max
    coarse = rng.random((max(height // 8, 2), max(width // 8, 2), 3)).astype(np.float32)
    fine = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.rint(fine * top).astype(dtype)


def expected(output: Output, result: Path, bgr: np.ndarray, white: int = 255) -> np.ndarray:
    """What the network makes of a picture, BGR, as floats in units of its levels."""
    height, width = bgr.shape[:2]
    more = [(0, height % 2), (0, width % 2), (0, 0)]
    rgb = np.pad(bgr[:, :, ::-1], more, mode="reflect" if min(height, width) > 1 else "edge")
    value = (rgb.transpose(2, 0, 1)[None] / np.float32(white)).astype(np.float32)
    found = output(result, value)[0].transpose(1, 2, 0)[:height, :width, ::-1]
    return np.clip(found, 0, 1) * white


@pytest.mark.parametrize("size", [(16, 16), (37, 51), (1, 1), (1, 6), (3, 2)])
def test_any_size(
    here: Path, restorer: Path, artifact_output: Output, size: tuple[int, int]
) -> None:
    picture = smooth(*size)
    cv2.imwrite("photo.png", picture)
    report = run(restorer, [Path("photo.png")])
    (result,) = report.files
    assert (report.task, report.target, report.executed) == (
        Task.IMAGE_TO_IMAGE,
        "onnxruntime",
        True,
    )
    assert result.size == size
    restored = cv2.imread("photo-restored.png", cv2.IMREAD_UNCHANGED)
    assert restored.shape == picture.shape
    # 0.5 is rounding; the rest allows for a value that lies on the edge between two levels.
    assert np.abs(restored - expected(artifact_output, restorer, picture)).max() <= 0.5 + 1e-3


def test_openvino(here: Path, openvino_restorer: Path, restorer: Path) -> None:
    cv2.imwrite("photo.png", smooth(37, 51))
    for name, result in (("ort", restorer), ("openvino", openvino_restorer)):
        run(result, [Path("photo.png")], out=Path(name))
    (tiled,) = run(openvino_restorer, [Path("photo.png")], out=Path("tiled"), tile=32).files
    assert tiled.tiles > 1
    ort, whole, tiles = (
        cv2.imread(f"{name}/photo-restored.png").astype(int)
        for name in ("ort", "openvino", "tiled")
    )
    assert np.array_equal(whole, tiles)
    # The same network: equal here. Another CPU may sum floats in another order, which moves single
    # pixels at the edge between two levels, or of two codes of the first layer.
    assert np.mean(ort == whole) > 0.99


def test_before_and_after(here: Path, restorer: Path) -> None:
    picture = smooth(40, 60)
    cv2.imwrite("photo.png", picture)
    run(restorer, [Path("photo.png")])
    both = cv2.imread("photo-before-after.png")
    bar = both.shape[0] - 40
    assert both.shape == (40 + bar, 120, 3)
    assert np.array_equal(both[bar:, :60], picture)
    assert np.array_equal(both[bar:, 60:], cv2.imread("photo-restored.png"))
    assert both[:bar, :60].any()  # a name
    assert both[:bar, 60:].any()


@pytest.mark.parametrize("tile", [32, 48, 50])
def test_tiles_equal_the_whole(here: Path, restorer: Path, tile: int) -> None:
    cv2.imwrite("photo.png", smooth(101, 139))
    run(restorer, [Path("photo.png")], out=Path("whole"))
    (result,) = run(restorer, [Path("photo.png")], out=Path("tiles"), tile=tile).files
    assert result.tiles > 4
    assert result.notes == ()
    whole, tiles = (cv2.imread(f"{name}/photo-restored.png") for name in ("whole", "tiles"))
    # The margin is wider than the network sees, and its sums are the same: no pixel differs.
    assert np.array_equal(whole, tiles)


@pytest.mark.parametrize("size", [(20, 30), (75, 90), (33, 40)])
def test_network_of_one_size(
    here: Path, fixed_restorer: Path, restorer: Path, size: tuple[int, int]
) -> None:
    cv2.imwrite("photo.png", smooth(*size))
    (result,) = run(fixed_restorer, [Path("photo.png")], out=Path("fixed")).files
    run(restorer, [Path("photo.png")], out=Path("free"))
    assert (result.tiles > 1) == (size[0] > 32 or size[1] > 40)
    fixed, free = (cv2.imread(f"{name}/photo-restored.png") for name in ("fixed", "free"))
    # The network that takes any size pads with zeros where this one sees the mirrored picture:
    # that reaches five pixels far.
    assert np.array_equal(fixed[:-6, :-6], free[:-6, :-6])


def test_gray_stays_gray(here: Path, restorer: Path, artifact_output: Output) -> None:
    gray = smooth(20, 24)[:, :, 0]
    cv2.imwrite("photo.png", gray)
    run(restorer, [Path("photo.png")])
    restored = cv2.imread("photo-restored.png", cv2.IMREAD_UNCHANGED)
    assert restored.shape == gray.shape
    three = expected(artifact_output, restorer, np.repeat(gray[:, :, None], 3, axis=2))
    weighed = three @ np.array([0.114, 0.587, 0.299])  # BT.601 of blue, green and red
    assert np.abs(restored - weighed).max() <= 1.001  # both roundings


def test_16_bits(here: Path, restorer: Path, artifact_output: Output) -> None:
    picture = smooth(20, 24, np.uint16)
    cv2.imwrite("photo.png", picture)
    run(restorer, [Path("photo.png")])
    restored = cv2.imread("photo-restored.png", cv2.IMREAD_UNCHANGED)
    assert restored.dtype == np.uint16
    wide = expected(artifact_output, restorer, picture, 65535)
    # Pixels are divided by 257 and by 255 here and by 65535 there: float32 is that far apart, but
    # where a value lies between two INT8 codes, it changes by one code times a weight.
    assert np.median(np.abs(restored - wide)) <= 0.51
    assert np.abs(restored - wide).max() <= 65535 * 2**-5 * 0.5


def test_16_bits_of_few_levels(here: Path, restorer: Path) -> None:
    cv2.imwrite("photo.png", np.full((8, 8), 40_000, np.uint16))
    (result,) = run(restorer, [Path("photo.png")]).files
    assert "256 levels" in result.notes[0]
    assert cv2.imread("photo-restored.png", cv2.IMREAD_UNCHANGED).dtype == np.uint8


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_transparency_stays(here: Path, restorer: Path, dtype: type) -> None:
    alpha = smooth(18, 26, dtype, seed=5)[:, :, :1]
    cv2.imwrite("photo.png", np.concatenate((smooth(18, 26, dtype), alpha), axis=2))
    run(restorer, [Path("photo.png")])
    restored = cv2.imread("photo-restored.png", cv2.IMREAD_UNCHANGED)
    assert restored.shape == (18, 26, 4)
    assert np.array_equal(restored[:, :, 3:], alpha)


def test_folders_and_an_output_folder(here: Path, restorer: Path) -> None:
    (here / "photos").mkdir()
    for name in ("a.png", "b.jpg"):
        cv2.imwrite(f"photos/{name}", smooth(16, 18))
    report = run(restorer, [Path("photos")], out=Path("made/here"))
    assert [result.file.name for result in report.files] == ["a.png", "b.jpg"]
    made = {path.name for path in Path("made/here").iterdir()}
    kinds = ("restored", "before-after")
    assert made == {f"{name}-{kind}.png" for name in "ab" for kind in kinds} | {"results.json"}
    written = json.loads(Path("made/here/results.json").read_text(encoding="utf-8"))
    assert written == report.to_dict()


def test_nothing_is_overwritten(here: Path, restorer: Path) -> None:
    cv2.imwrite("photo.png", smooth(16, 16))
    Path("photo-restored.png").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"'photo-restored\.png' exists already") as caught:
        run(restorer, [Path("photo.png")])
    assert "--force" in caught.value.hint
    assert Path("photo-restored.png").read_bytes() == b"mine"
    assert {path.name for path in here.iterdir()} == {"photo.png", "photo-restored.png"}
    run(restorer, [Path("photo.png")], force=True)
    assert cv2.imread("photo-restored.png").shape == (16, 16, 3)


def test_a_bad_file_is_found_before_anything_is_written(here: Path, restorer: Path) -> None:
    cv2.imwrite("good.png", smooth(16, 16))
    Path("bad.png").write_text("no picture", encoding="utf-8")
    with pytest.raises(LoadError, match=r"'bad\.png' is not an image"):
        run(restorer, [Path("good.png"), Path("bad.png")], out=Path("made"))
    assert not Path("made").exists()


def test_a_file_that_is_read_is_not_written(here: Path, restorer: Path) -> None:
    for name in ("photo.png", "photo-restored.png"):
        cv2.imwrite(name, smooth(16, 16))
    with pytest.raises(ConfigError, match=r"'photo-restored\.png' is to be read and to be written"):
        run(restorer, [here], force=True)


def test_an_interrupt_keeps_what_is_done(here: Path, restorer: Path) -> None:
    for name in "abc":
        cv2.imwrite(f"{name}.png", smooth(16, 16))

    def stop(_stage: str, fraction: float) -> None:
        if fraction > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="what 1 of 3 files gave was written"):
        run(restorer, [here], out=Path("made"), progress=stop)
    made = sorted(path.name for path in Path("made").iterdir())
    assert made == ["a-before-after.png", "a-restored.png"]


def test_two_files_of_one_name(here: Path, restorer: Path) -> None:
    for name in ("photo.png", "photo.jpg"):
        cv2.imwrite(name, smooth(16, 16))
    with pytest.raises(ConfigError, match=r"'photo\.png' and 'photo\.jpg' would both be written"):
        run(restorer, [Path("photo.png"), Path("photo.jpg")])


def test_options_that_do_not_fit(here: Path, restorer: Path) -> None:
    cv2.imwrite("photo.png", smooth(16, 16))
    photo = [Path("photo.png")]
    with pytest.raises(ConfigError, match="no file to run"):
        run(restorer)
    with pytest.raises(ConfigError, match="--tile 4 is too small"):
        run(restorer, photo, tile=4)
    with pytest.raises(ConfigError, match="--support is for embeddings"):
        run(restorer, photo, support=Path("support"))
    with pytest.raises(ConfigError, match="no target 'coreml'"):
        run(restorer, photo, target="coreml")


def test_a_target_that_nothing_runs_here_is_simulated(here: Path, restorer: Path) -> None:
    cv2.imwrite("photo.png", smooth(16, 16))
    try:
        report = run(restorer, [Path("photo.png")], target="tensorrt")
    except Exception as error:  # noqa: BLE001 - a machine with a GPU may run it, or refuse it
        pytest.skip(f"TensorRT answers here: {error}")
    if report.executed:
        pytest.skip("TensorRT runs here")
    assert report.reason is not None
    assert "ONNX Runtime instead" in report.reason


def test_command(here: Path, restorer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cv2.imwrite("photo.png", smooth(17, 23))
    assert main(["run", str(restorer), "photo.png"]) == 0
    shown = capsys.readouterr().out
    assert "23x17" in shown
    assert "photo-restored.png" in shown
    assert main(["run", str(restorer), "photo.png", "--force", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["files"][0]["outputs"]["restored"] == "photo-restored.png"
    assert main(["run", str(restorer), "missing.png", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["code"], error["message"][:13]) == ("load", "'missing.png'")
