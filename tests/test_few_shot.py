"""Prototypes and metrics, by hand and against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import ConfigError
from edgekit.few_shot import Metric, prototypes, scores


def test_by_hand() -> None:
    support = np.array([[[2.0, 0.0], [4.0, 0.0]], [[0.0, 3.0], [0.0, 1.0]]])
    means = prototypes(support)
    assert means.tolist() == [[3.0, 0.0], [0.0, 2.0]]
    queries = np.array([[6.0, 8.0]])
    # along the directions of the prototypes, whatever their lengths
    assert scores(queries, means, Metric.PROJECTION).tolist() == [[6.0, 8.0]]
    assert scores(queries, means, Metric.COSINE) == pytest.approx(np.array([[0.6, 0.8]]))


def test_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    queries, means = rng.normal(size=(7, 5)), rng.normal(size=(3, 5))
    for metric in Metric:
        found = scores(queries, means, metric)
        for i, z in enumerate(queries):
            for c, p in enumerate(means):
                value = float(np.dot(z, p)) / float(np.sqrt(np.dot(p, p)))
                if metric is Metric.COSINE:
                    value /= float(np.sqrt(np.dot(z, z)))
                assert found[i, c] == pytest.approx(value, rel=1e-12)


def test_zero_vectors_score_zero() -> None:
    zero = np.zeros((1, 4))
    for metric in Metric:
        assert scores(zero, zero, metric).tolist() == [[0.0]]


@pytest.mark.parametrize("shape", [(5, 3), (2, 0, 3), (0, 1, 3)])
def test_bad_support(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"expected \[N, K, C\]"):
        prototypes(np.zeros(shape))
