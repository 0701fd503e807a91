from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgekit.datasets import list_images, open_dataset, read_image
from edgekit.errors import ConfigError, LoadError

cv2 = pytest.importorskip("cv2", reason="opencv is not installed")

RED = np.full((4, 5, 3), (255, 0, 0), np.uint8)


def _write(path: Path, rgb: np.ndarray = RED) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ok, data = cv2.imencode(".png", rgb[:, :, ::-1])
    assert ok
    path.write_bytes(data.tobytes())


def test_decoding_gives_rgb(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 7, 3)).astype(np.uint8)
    _write(tmp_path / "Bild-ä.png", image)
    np.testing.assert_array_equal(read_image(tmp_path / "Bild-ä.png"), image)


def test_gray_files_give_three_channels(tmp_path: Path) -> None:
    gray = np.random.default_rng(0).integers(0, 256, (6, 7)).astype(np.uint8)
    (tmp_path / "g.png").write_bytes(cv2.imencode(".png", gray)[1].tobytes())
    np.testing.assert_array_equal(read_image(tmp_path / "g.png"), np.stack([gray] * 3, axis=2))


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"], ids=str)
def test_a_file_that_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "7_broken.png"
    path.write_bytes(content)
    with pytest.raises(LoadError, match=r"7_broken\.png' is not an image"):
        read_image(path)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"absent\.png' cannot be read"):
        read_image(tmp_path / "absent.png")


def test_indexed_files_carry_their_label(tmp_path: Path) -> None:
    for name in ("010_b.png", "2_a.PNG", "2_c.png", "README.md", ".hidden.png"):
        _write(tmp_path / name)
    dataset = open_dataset(tmp_path, num_classes=11)
    assert len(dataset) == 3
    assert [label for _image, label in dataset] == [10, 2, 2]
    np.testing.assert_array_equal(dataset[0][0], RED)


def test_images_are_decoded_when_they_are_asked_for(tmp_path: Path) -> None:
    _write(tmp_path / "0_good.png")
    (tmp_path / "1_broken.png").write_bytes(b"")
    dataset = open_dataset(tmp_path)
    assert dataset[0][1] == 0
    with pytest.raises(LoadError, match="1_broken"):
        dataset[1]


def test_class_folders_count_in_sorted_order(tmp_path: Path) -> None:
    for name in ("dog/1.png", "cat/1.png", "cat/2.png", "eel/notes.txt", "dog/.x.png"):
        _write(tmp_path / name)
    dataset = open_dataset(tmp_path, num_classes=3)
    assert [label for _image, label in dataset] == [0, 0, 1]


def test_class_file_gives_the_index_by_line(tmp_path: Path) -> None:
    for name in ("data/dog/1.png", "data/cat/1.png"):
        _write(tmp_path / name)
    classes = tmp_path / "classes.txt"
    classes.write_text("dog\n\neel\ncat\n", encoding="utf-8")
    dataset = open_dataset(tmp_path / "data", num_classes=4, classes=classes)
    assert [label for _image, label in dataset] == [3, 0]


def test_folders_of_another_count_need_a_class_file(tmp_path: Path) -> None:
    _write(tmp_path / "dog/1.png")
    with pytest.raises(ConfigError, match="1 class folders, the network has 2") as caught:
        open_dataset(tmp_path, num_classes=2)
    assert "--classes" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [("cat\n", "dog' is not named"), ("dog\ndog\n", "names 'dog' twice, line 2")],
)
def test_wrong_class_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    _write(tmp_path / "data/dog/1.png")
    classes = tmp_path / "classes.txt"
    classes.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        open_dataset(tmp_path / "data", classes=classes)
    with pytest.raises(ConfigError, match="cannot be read"):
        open_dataset(tmp_path / "data", classes=tmp_path / "absent.txt")


def _empty(path: Path) -> None:
    (path / "notes.txt").write_text("x", encoding="utf-8")


def _empty_folders(path: Path) -> None:
    (path / "cat").mkdir()


def _mixed(path: Path) -> None:
    _write(path / "0_a.png")
    _write(path / "cat/1.png")


def _without_index(path: Path) -> None:
    _write(path / "0_a.png")
    _write(path / "photo.png")


def _label_beyond(path: Path) -> None:
    _write(path / "2_a.png")


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (_empty, "neither image files nor class folders"),
        (_empty_folders, "hold no image file"),
        (_mixed, r"mixed: image file '0_a\.png' beside folder 'cat'"),
        (_without_index, r"photo\.png' has no class index"),
        (_label_beyond, r"2_a\.png': label 2 is out of range, the network has 2"),
    ],
)
def test_unusable_folders_are_refused(
    tmp_path: Path, fill: Callable[[Path], None], message: str
) -> None:
    fill(tmp_path)
    with pytest.raises(ConfigError, match=message):
        open_dataset(tmp_path, num_classes=None if fill is _empty_folders else 2)


def test_arrays_with_and_without_channels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (3, 4, 5, 3)).astype(np.uint8)
    labels = np.array([2, 0, 1], np.uint8)
    np.savez(tmp_path / "c.npz", images=colour, labels=labels)
    dataset = open_dataset(tmp_path / "c.npz", num_classes=3)
    assert [label for _image, label in dataset] == [2, 0, 1]
    np.testing.assert_array_equal(dataset[1][0], colour[1])
    np.savez(tmp_path / "g.npz", images=colour[..., 0], labels=labels)
    np.testing.assert_array_equal(open_dataset(tmp_path / "g.npz")[2][0], colour[2, :, :, :1])


IMAGES = np.zeros((2, 4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"jpeg": IMAGES}, r"holds the arrays \['jpeg'\], expected 'images' and 'labels'"),
        ({"images": IMAGES}, "expected 'images' and 'labels'"),
        ({"images": IMAGES.astype(np.float32), "labels": [0, 1]}, "'images' is float32"),
        ({"images": IMAGES.transpose(0, 3, 1, 2), "labels": [0, 1]}, r"\[2, 3, 4, 4\]"),
        ({"images": IMAGES[:0], "labels": []}, "holds no image"),
        ({"images": IMAGES, "labels": [0]}, "expected 2 integers"),
        ({"images": IMAGES, "labels": [0.0, 1.0]}, "'labels' is float64"),
        ({"images": IMAGES, "labels": [0, 3]}, "label 3 is out of range, the network has 3"),
        ({"images": IMAGES, "labels": [-1, 0]}, "label -1 is out of range"),
    ],
)
def test_unusable_arrays_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    with pytest.raises(ConfigError, match=message):
        open_dataset(path, num_classes=3)


def test_archives_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, images=np.array([object()]), labels=np.zeros(1, np.int64))
    with pytest.raises(LoadError, match="not a readable"):  # it would have to be unpickled
        open_dataset(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(LoadError, match="not a readable"):
        open_dataset(path)
    np.save(tmp_path / "single.npy", np.zeros(3))
    (tmp_path / "single.npy").rename(path)
    with pytest.raises(LoadError, match="not a readable"):
        open_dataset(path)


@pytest.mark.parametrize("name", ["absent", "model.onnx"])
def test_other_paths_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(ConfigError, match=name) as caught:
        open_dataset(tmp_path / name)
    assert "<index>_" in caught.value.hint


def test_labels_are_optional_where_none_are_needed(tmp_path: Path) -> None:
    _write(tmp_path / "flat/photo.png")
    _write(tmp_path / "deep/a/photo.png")
    np.savez(tmp_path / "data.npz", images=IMAGES)
    for name, count in (("flat", 1), ("deep", 1), ("data.npz", 2)):
        dataset = open_dataset(tmp_path / name, labelled=False)
        assert [label for _image, label in dataset] == [None] * count
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match="holds no image file"):
        open_dataset(tmp_path / "none", labelled=False)


def test_images_are_listed_by_name(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "c.txt", "sub/d.png"):
        _write(tmp_path / name)
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.png"]
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match="holds no image file"):
        list_images(tmp_path / "none")
    with pytest.raises(ConfigError, match="is not a folder"):
        list_images(tmp_path / "absent")
