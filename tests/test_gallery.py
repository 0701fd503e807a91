"""Pictures of a set: which image stands where."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from edgekit.gallery import gallery
from edgekit.synthetic import SyntheticSet
from edgekit.types import Preprocessing

RAW = Preprocessing(range=255)
WHITE = 255


def flat_images(count: int, size: int = 64) -> Tensor:
    """Image k has the one gray value k."""
    values = torch.arange(float(count)).reshape(-1, 1, 1, 1)
    return values.expand(-1, 3, size, size).contiguous()


def sheet_of(images: Tensor, labels: list[int] | None = None) -> np.ndarray | None:
    chosen = None if labels is None else torch.tensor(labels)
    return gallery(SyntheticSet((images,), chosen, "test"), RAW)


def cells(sheet: np.ndarray, side: int) -> list[list[int]]:
    """The gray value in the middle of each cell; cells are two pixels apart."""
    step = side + 2
    rows, columns = (sheet.shape[0] - 2) // step, (sheet.shape[1] - 2) // step
    assert sheet.shape == (rows * step + 2, columns * step + 2, 3)
    middle = 2 + side // 2
    return [
        [int(sheet[y * step + middle, x * step + middle, 0]) for x in range(columns)]
        for y in range(rows)
    ]


def test_one_row_for_each_class_in_order() -> None:
    sheet = sheet_of(flat_images(6), [4, 1, 4, 0, 1, 4])
    assert sheet is not None
    assert sheet.dtype == np.uint8
    assert cells(sheet, 64) == [[3, WHITE, WHITE], [1, 4, WHITE], [0, 2, 5]]


def test_without_classes_ten_to_a_row() -> None:
    for labels in (None, [7] * 23):  # one class is none
        sheet = sheet_of(flat_images(23), labels)
        assert sheet is not None
        found = cells(sheet, 64)
        assert found[0] == list(range(10))
        assert found[2] == [20, 21, 22, *[WHITE] * 7]


def test_many_images_are_not_all_shown() -> None:
    sheet = sheet_of(flat_images(250), None)
    assert sheet is not None
    assert np.shape(cells(sheet, 64)) == (20, 10)
    sheet = sheet_of(flat_images(120), [i % 30 for i in range(120)])
    assert sheet is not None
    assert np.shape(cells(sheet, 64)) == (20, 4)
    sheet = sheet_of(flat_images(30), [0] * 25 + [1] * 5)
    assert sheet is not None
    assert np.shape(cells(sheet, 64)) == (2, 10)


def test_small_images_are_enlarged_pixel_by_pixel() -> None:
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    sheet = sheet_of(image)
    assert sheet is not None
    assert sheet.shape == (68, 68, 3)
    inner = sheet[2:66, 2:66, 0]
    np.testing.assert_array_equal(inner, np.kron(np.arange(16).reshape(4, 4), np.ones((16, 16))))
    assert (sheet[:2] == WHITE).all()


def test_colours_are_those_of_the_preprocessing() -> None:
    red = torch.zeros(1, 3, 64, 64)
    red[:, 2] = 1.0  # a network that takes BGR
    made = SyntheticSet((red,), None, "test")
    sheet = gallery(made, Preprocessing(color="bgr"))
    assert sheet is not None
    assert sheet[30, 30].tolist() == [255, 0, 0]


def test_inputs_that_are_no_images_have_no_picture() -> None:
    for shape in ((2, 5), (2, 3, 9), (2, 4, 8, 8), (2, 2, 3, 8, 8)):
        assert sheet_of(torch.zeros(shape)) is None
