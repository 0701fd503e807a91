"""Layouts of few-shot data, and what is said where a folder has none of them."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import ConfigError, LoadError
from edgekit.training.class_images import FewShotData
from edgekit.training.drawn_shapes import drawn_shapes
from edgekit.training.few_shot_data import open_few_shot_data

cv2 = pytest.importorskip("cv2")
SIDE = 8


def png(grey: int, side: int = 12) -> bytes:
    done, data = cv2.imencode(".png", np.full((side, side, 3), grey, np.uint8))
    assert done
    return bytes(data.tobytes())


def write(folder: Path, classes: Iterable[str], each: int = 3) -> None:
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for k in range(each):
            (folder / name / f"{k}.png").write_bytes(png(10 * number + k))


def names(data: FewShotData) -> list[tuple[str, ...]]:
    return [part.names for part in (data.base, data.validation, data.novel)]


@pytest.mark.parametrize("parts", [("train", "val", "test"), ("base", "validation", "novel")])
def test_split_folders(tmp_path: Path, parts: tuple[str, str, str]) -> None:
    for part, classes in zip(parts, ("abc", "de", "fg"), strict=True):
        write(tmp_path / part, classes)
    data = open_few_shot_data(tmp_path, SIDE)
    assert names(data) == [("a", "b", "c"), ("d", "e"), ("f", "g")]
    assert data.base.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    pictures = data.base.pictures([4, 0])
    assert pictures.shape == (2, SIDE, SIDE, 3)
    assert pictures[:, 0, 0, 0].tolist() == [11, 0]


def test_lists_of_classes(tmp_path: Path) -> None:
    write(tmp_path, "abcdef")
    for part, classes in {"train": "ce", "val": "ab", "test": "df"}.items():
        (tmp_path / f"{part}.csv").write_text("\n".join(classes) + "\n")
    assert names(open_few_shot_data(tmp_path, SIDE)) == [("c", "e"), ("a", "b"), ("d", "f")]


def test_lists_of_files_as_miniimagenet_has_them(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for part, classes in {"train": "ab", "val": "cd", "test": "ef"}.items():
        rows = ["filename,label"]
        for name in classes:
            (tmp_path / "images" / f"{name}0.png").write_bytes(png(ord(name)))
            rows.append(f"{name}0.png,{name}")
        (tmp_path / f"{part}.csv").write_text("\n".join(rows))
    data = open_few_shot_data(tmp_path, SIDE)
    assert names(data) == [("a", "b"), ("c", "d"), ("e", "f")]
    assert data.novel.pictures([1])[0, 0, 0, 0] == ord("f")


def test_class_folders_alone_are_split_by_name(tmp_path: Path) -> None:
    write(tmp_path, "abcdefghij")
    assert names(open_few_shot_data(tmp_path, SIDE)) == [
        ("a", "b", "c", "d", "e", "f"),
        ("g", "h"),
        ("i", "j"),
    ]


def packed(path: Path, **changes: np.ndarray) -> Path:
    files = [png(40 * c + k) for c in range(6) for k in range(2)]
    arrays = {
        "jpeg": np.frombuffer(b"".join(files), np.uint8),
        "offsets": np.cumsum([0, *map(len, files)]),
        "labels": np.repeat(np.arange(6), 2).astype(np.int16),
        "wnids": np.array(list("uvwxyz")),
        "split": np.array(["novel", "base", "val", "base", "novel", "val"]),
    }
    np.savez(path, **{**arrays, **changes})  # type: ignore[arg-type]
    return path


def test_packed_files(tmp_path: Path) -> None:
    data = open_few_shot_data(packed(tmp_path / "x.npz"), SIDE)
    assert names(data) == [("v", "x"), ("w", "z"), ("u", "y")]
    assert data.base.labels.tolist() == [0, 0, 1, 1]
    assert data.novel.pictures([3])[0, 0, 0, 0] == 40 * 4 + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.full(12, 9)}, "a label lies outside of the 6 classes"),
        ({"offsets": np.arange(5)}, "13 integers"),
        ({"offsets": np.arange(13)[::-1]}, "'offsets' does not rise"),
        ({"jpeg": np.zeros(4)}, "not a row of uint8"),
        ({"split": np.array(["base"])}, "one text for each class"),
        ({"split": np.array(["base"] * 6)}, "0 classes in the part 'val'"),
    ],
)
def test_packed_files_that_do_not_fit(
    tmp_path: Path, changes: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        open_few_shot_data(packed(tmp_path / "x.npz", **changes), SIDE)
    assert "PATH/{train,val,test}/CLASS/IMAGE" in caught.value.hint


def test_other_archives(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.zeros(3))
    with pytest.raises(ConfigError, match="lacks the array 'jpeg'"):
        open_few_shot_data(tmp_path / "x.npz", SIDE)
    (tmp_path / "y.npz").write_bytes(b"nothing")
    with pytest.raises(LoadError, match=r"not a readable \.npz"):
        open_few_shot_data(tmp_path / "y.npz", SIDE)
    (tmp_path / "z.zip").write_bytes(b"nothing")
    with pytest.raises(LoadError, match="not a readable zip"):
        open_few_shot_data(tmp_path / "z.zip", SIDE)


def test_damaged_picture_in_an_archive(tmp_path: Path) -> None:
    data = open_few_shot_data(packed(tmp_path / "x.npz", jpeg=np.zeros(5000, np.uint8)), SIDE)
    with pytest.raises(LoadError, match="image 2' is not a picture"):
        data.base.pictures([0])


ALPHABETS = ("Greek", "Korean", "Latin", "Sanskrit")


def test_omniglot_as_folder_and_as_archives(tmp_path: Path) -> None:
    for name in ALPHABETS:
        write(tmp_path / "unpacked" / "background" / name, ("character01", "character02"))
    archives = tmp_path / "archives"
    archives.mkdir()
    for file, alphabets in {"a.zip": ALPHABETS[:3], "b.zip": ALPHABETS[2:]}.items():
        with zipfile.ZipFile(archives / file, "w") as archive:  # Latin is in both
            for item in sorted((tmp_path / "unpacked").rglob("*.png")):
                inside = item.relative_to(tmp_path / "unpacked")
                if inside.parts[1] in alphabets:
                    archive.write(item, str(inside))
    folder, packed_ones = (
        open_few_shot_data(tmp_path / kind, SIDE) for kind in ("unpacked", "archives")
    )
    assert names(folder) == names(packed_ones)
    assert folder.identity == packed_ones.identity
    assert folder.validation.names == ("Latin/character01", "Latin/character02")
    assert folder.novel.names == ("Sanskrit/character01", "Sanskrit/character02")
    assert len(folder.base) == 12
    both = [data.novel.pictures([5, 0]) for data in (folder, packed_ones)]
    assert (both[0] == both[1]).all()
    assert not folder.mirrored


def test_omniglot_with_too_few_alphabets(tmp_path: Path) -> None:
    write(tmp_path / "Greek", ("character01", "character02"))
    with pytest.raises(ConfigError, match="1 alphabets, at least 4"):
        open_few_shot_data(tmp_path, SIDE)


def wrong_layouts(tmp_path: Path) -> dict[str, Path]:
    made = {name: tmp_path / name for name in ("empty", "loose", "part", "shared", "list", "few")}
    made["empty"].mkdir()
    made["loose"].mkdir()
    (made["loose"] / "a.png").write_bytes(png(0))
    write(made["part"] / "train", "ab")
    for part in ("train", "val", "test"):
        write(made["shared"] / part, ("a", f"{part}1"))
    write(made["list"], "ab")
    (made["list"] / "train.csv").write_text("a\nc\n")
    write(made["few"], "abc")
    made["text"] = tmp_path / "x.txt"
    made["text"].write_text("")
    return made


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "no class folder"),
        ("loose", "image files such as 'a.png', and no classes"),
        ("part", "0 classes for 'validation'"),
        ("shared", "class 'a' is in base and in validation"),
        ("list", "names 'c'"),
        ("few", "0 classes for 'validation'|1 classes for"),
        ("text", r"no folder, \.npz or \.zip"),
    ],
)
def test_wrong_layouts_are_explained(tmp_path: Path, kind: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        open_few_shot_data(wrong_layouts(tmp_path)[kind], SIDE)
    if kind != "shared":
        assert "PATH/{train,val,test}/CLASS/IMAGE" in caught.value.hint


def test_a_list_cannot_lead_outside(tmp_path: Path) -> None:
    inside = tmp_path / "data"
    write(inside, "ab")
    write(tmp_path / "outside", "x")
    (inside / "train.csv").write_text("../outside/x\nb\n")
    with pytest.raises(ConfigError, match=r"which '.*' lacks"):
        open_few_shot_data(inside, SIDE)


def test_drawn_classes_are_the_same_in_every_run_and_apart() -> None:
    one, other = drawn_shapes(24), drawn_shapes(24)
    assert [len(part.names) for part in (one.base, one.validation, one.novel)] == [64, 16, 20]
    everything = sum(names(one), ())
    assert len(set(everything)) == 100
    assert (one.base.pictures([7, 300]) == other.base.pictures([7, 300])).all()
    first, again, another = one.novel.pictures([0, 1, 40]).astype(float)
    assert np.abs(first - again).mean() > 5.0  # redrawn each time, in levels of 255
    assert np.abs(first - another).mean() > 5.0
    assert one.identity == other.identity != drawn_shapes(32).identity
