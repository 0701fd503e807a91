from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit.errors import VerificationError
from edgekit.fidelity import agreement_percent, psnr_db, sample_agreement, sqnr_db
from edgekit.types import Task


def test_classification_counts_equal_top1() -> None:
    reference = np.array([[1, 3, 2], [5, 0, 0], [0, 0, 1], [2, 1, 0]], np.float32)
    value = np.array([[0, 9, 8], [0, 5, 0], [0, 0, 7], [1, 0, 0]], np.float32)
    assert sample_agreement(Task.CLASSIFICATION, reference, value).tolist() == [100, 0, 100, 100]
    assert agreement_percent(Task.CLASSIFICATION, reference, value) == 75.0


def test_classification_of_positions_is_a_share() -> None:
    reference = np.zeros((1, 2, 2, 2))
    reference[0, 1] = [[1, 1], [1, -1]]
    value = np.zeros((1, 2, 2, 2))
    value[0, 1] = [[1, 1], [-1, 1]]
    assert agreement_percent(Task.CLASSIFICATION, reference, value) == 50.0


def test_a_single_logit_decides_by_its_sign() -> None:
    reference, value = np.array([[0.1], [-3.0]]), np.array([[9.0], [2.0]])
    assert agreement_percent(Task.CLASSIFICATION, reference, value) == 50.0


def test_embedding_is_the_cosine() -> None:
    reference = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    value = np.array([[5.0, 0.0], [1.0, 1.0], [-1.0, 0.0], [0.0, 0.0]])
    scores = sample_agreement(Task.EMBEDDING, reference, value)
    # float64 rounding of a square root
    np.testing.assert_allclose(scores, [100, 100 / math.sqrt(2), 0, 100], rtol=1e-12)


def test_ranking_is_the_overlap_of_the_ten_best() -> None:
    reference = np.arange(30, dtype=np.float64)[None]
    value = reference.copy()
    value[0, 20:23] = -1  # three of the ten best, 20 to 29, leave: 17, 18, 19 move up
    assert agreement_percent(Task.RANKING, reference, value) == 70.0
    assert agreement_percent(Task.RANKING, reference, -reference) == 0.0


def test_ranking_of_few_items_looks_at_the_better_half() -> None:
    reference = np.array([[4.0, 3.0, 2.0, 1.0]])
    value = np.array([[4.0, 1.0, 3.0, 2.0]])
    assert agreement_percent(Task.RANKING, reference, value) == 50.0


@pytest.mark.parametrize("task", [Task.IMAGE_TO_IMAGE, Task.OTHER])
def test_images_lose_the_relative_error(task: Task) -> None:
    reference = np.array([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0], [0.0, 0.0], [0.0, 0.0]])
    value = np.array([[3.0, 4.5], [-9.0, -9.0], [3.0, 4.0], [0.0, 0.0], [0.0, 1.0]])
    assert sample_agreement(task, reference, value).tolist() == [90.0, 0.0, 100.0, 100.0, 0.0]


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_agree_with_nothing(task: Task, bad: float) -> None:
    reference = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    value = reference.copy()
    value[0, 2] = bad
    assert sample_agreement(task, reference, value).tolist() == [0.0, 100.0]
    assert sample_agreement(task, value, value).tolist() == [0.0, 100.0]
    assert sqnr_db(reference, value) == -math.inf
    assert sqnr_db(value, value) == -math.inf


finite = st.floats(-1e6, 1e6, width=32)


@given(
    task=st.sampled_from(list(Task)),
    pair=hnp.arrays(np.float32, (2, 4, 6), elements=finite),
    cut=st.integers(1, 3),
)
def test_scores_are_percentages_and_do_not_depend_on_batches(
    task: Task, pair: np.ndarray, cut: int
) -> None:
    reference, value = pair
    scores = sample_agreement(task, reference, value)
    assert scores.shape == (4,)
    assert ((scores >= 0) & (scores <= 100)).all()
    # The same sums of six terms, perhaps in another order: float64 rounding only.
    parts = [sample_agreement(task, reference[s], value[s]) for s in (slice(cut), slice(cut, 4))]
    np.testing.assert_allclose(np.concatenate(parts), scores, atol=1e-9)
    itself = sample_agreement(task, reference, reference)
    np.testing.assert_allclose(itself, 100.0, atol=1e-9)


def test_sqnr_by_hand() -> None:
    reference, value = np.array([[3.0, 4.0]]), np.array([[3.0, 4.5]])
    assert sqnr_db(reference, value) == pytest.approx(20.0)  # 25 / 0.25 is 100
    assert sqnr_db(reference, reference) == math.inf
    assert sqnr_db(np.zeros((1, 2)), value) == -math.inf


def test_sqnr_does_not_overflow_in_half_precision() -> None:
    reference = np.full((1, 1000), 300.0, np.float16)
    value = reference + np.float16(30.0)
    assert sqnr_db(reference, value) == pytest.approx(20.0)


def test_psnr_by_hand() -> None:
    reference = np.array([[0.0, 1.0, 0.5, 0.5]])
    value = reference + 0.1
    assert psnr_db(reference, value) == pytest.approx(20.0)  # 1 / 0.01
    assert psnr_db(reference, value, peak=10.0) == pytest.approx(40.0)
    assert psnr_db(reference, reference) == math.inf


@pytest.mark.parametrize(
    ("reference", "value"),
    [((2, 3), (2, 4)), ((2, 3), (1, 3)), ((0, 3), (0, 3)), ((), ())],
    ids=str,
)
def test_outputs_must_be_comparable(reference: tuple[int, ...], value: tuple[int, ...]) -> None:
    with pytest.raises(VerificationError):
        agreement_percent(Task.OTHER, np.ones(reference), np.ones(value))
    with pytest.raises(VerificationError):
        sqnr_db(np.ones(reference), np.ones(value))
