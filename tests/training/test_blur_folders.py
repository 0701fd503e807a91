"""Layouts of picture folders, as they are and as they should not be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
pytest.importorskip("torch")

from edgekit.errors import ConfigError, LoadError  # noqa: E402
from edgekit.training.blur_folders import BlurFolders, open_blur_folders  # noqa: E402
from edgekit.training.pictures import crops  # noqa: E402

SIDE = 40


def picture(path: Path, value: int, size: tuple[int, int] = (SIDE, SIDE)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((*size, 3), value, np.uint8))


def scene(folder: Path, count: int, blurred: str = "blur", base: int = 0) -> None:
    for index in range(count):
        picture(folder / blurred / f"{index:06}.png", base + 2 * index)
        picture(folder / "sharp" / f"{index:06}.png", base + 2 * index + 1)


def shown(source: BlurFolders) -> tuple[set[int], set[int]]:
    """Return the grey values that are shown blurred and sharp."""
    rng = np.random.default_rng(0)
    blurred = {int(source.blurred(rng)[0, 0, 0]) for _ in range(100)}
    sharp = {int(source.sharp(rng)[0, 0, 0]) for _ in range(100)}
    return blurred, sharp


def test_gopro_layout(tmp_path: Path) -> None:
    for index, name in enumerate(("GOPR0372_07_00", "GOPR0374_11_00", "GOPR0374_11_01", "GOPR1")):
        scene(tmp_path / "train" / name, 4, "blur_gamma", 10 * index)
        scene(tmp_path / "train" / name, 4, "blur", 100 + 10 * index)
    scene(tmp_path / "test" / "GOPR0384_11_00", 3, "blur_gamma", 200)
    source = open_blur_folders(tmp_path, 32)
    blurred, sharp = shown(source)
    # blur_gamma is preferred; halves are of scenes, so no scene shows both of its sides
    assert blurred == {0, 2, 4, 6, 10, 12, 14, 16}
    assert {value // 10 for value in sharp} == {12, 13}
    assert [int(b[0, 0, 0]) for b, _ in source.validation()] == [200, 202, 204]
    assert "16 pairs" in source.description


def test_two_folders_of_pairs(tmp_path: Path) -> None:
    scene(tmp_path, 10)
    source = open_blur_folders(tmp_path, 32)
    blurred, sharp = shown(source)
    assert len(source.validation()) == 1
    held_out = int(source.validation()[0][0][0, 0, 0])
    assert blurred & {held_out, *(value - 1 for value in sharp)} == set()
    assert len(blurred) + len(sharp) == 9
    one, other = source.pair(np.random.default_rng(0))
    assert int(other[0, 0, 0]) == int(one[0, 0, 0]) + 1


def test_sharp_pictures_alone_are_shaken(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for index in range(6):
        (tmp_path / f"{index}.png").write_bytes(
            cv2.imencode(".png", rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8))[1].tobytes()
        )
    source = open_blur_folders(tmp_path, 32)
    blurred, sharp = source.validation()[0]
    assert blurred.std() < 0.7 * sharp.std()
    assert "to be blurred" in source.description


def test_crops_of_a_couple_are_cut_alike() -> None:
    ramp = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE, 1).repeat(3, 2)
    rng = np.random.default_rng(0)
    first, second = crops(lambda _: (ramp, ramp), rng, 8, 32, resized=False)
    assert first.shape == (8, 3, 32, 32)
    assert first.equal(second)
    assert len({crop.numpy().tobytes() for crop in first}) > 4
    shrunk = crops(lambda _: (ramp,), rng, 4, 32, resized=True)[0]
    assert shrunk.shape == (4, 3, 32, 32)


def test_identity_follows_the_files(tmp_path: Path) -> None:
    scene(tmp_path, 4)
    before = open_blur_folders(tmp_path, 32).identity
    assert open_blur_folders(tmp_path, 32).identity == before
    scene(tmp_path, 5)
    assert open_blur_folders(tmp_path, 32).identity != before


def no_twin(path: Path) -> None:
    scene(path, 4)
    (path / "sharp" / "000002.png").unlink()


def no_sharp(path: Path) -> None:
    picture(path / "blur" / "1.png", 1)


def no_blur(path: Path) -> None:
    picture(path / "train" / "SCENE" / "sharp" / "1.png", 1)


def other_folders(path: Path) -> None:
    picture(path / "cats" / "1.png", 1)


def too_few(path: Path) -> None:
    scene(path, 2)


WRONG = {
    no_twin: "'000002.png' is in one of blur and sharp only",
    no_sharp: "has no folder 'sharp'",
    no_blur: "has no folder 'blur'",
    other_folders: "has the folders cats: none is a scene",
    too_few: "too few",
    Path.touch: "is not a folder",
    Path.mkdir: "holds no image file",
}


@pytest.mark.parametrize("make", WRONG, ids=lambda make: make.__name__)
def test_wrong_layout_shows_the_right_one(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "data"
    make(path)
    with pytest.raises(ConfigError, match=WRONG[make]) as caught:
        open_blur_folders(path, 32)
    assert "PATH/train/SCENE/{blur,blur_gamma,sharp}" in caught.value.hint


def test_twins_of_different_size(tmp_path: Path) -> None:
    scene(tmp_path, 6)
    picture(tmp_path / "blur" / "000000.png", 0, (SIDE, SIDE + 4))
    with pytest.raises(ConfigError, match="is 44x40, its sharp twin"):
        open_blur_folders(tmp_path, 32).validation()


def test_picture_smaller_than_a_crop(tmp_path: Path) -> None:
    scene(tmp_path, 6)
    with pytest.raises(ConfigError, match="is 40x40, training takes crops of 64 pixels"):
        open_blur_folders(tmp_path, 64).validation()


def test_unreadable_picture(tmp_path: Path) -> None:
    scene(tmp_path, 6)
    (tmp_path / "sharp" / "000000.png").write_text("no picture")
    with pytest.raises(LoadError, match="not an image"):
        open_blur_folders(tmp_path, 32).validation()
