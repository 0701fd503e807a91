"""Episodes: reproducible, disjoint, and refused where there are too few images."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgekit.errors import ConfigError
from edgekit.training.episodes import (
    EpisodeShape,
    fixed_episodes,
    images_of_classes,
    require_enough,
)

LABELS = np.array([0, 1, 2, 0, 1, 2, 3, 3, 3, 0, 1, 2, 0, 3])  # 4, 3, 3 and 4 images
SHAPE = EpisodeShape(ways=3, shots=1, queries=2)


def test_images_of_classes() -> None:
    found = images_of_classes(LABELS)
    assert [members.tolist() for members in found] == [
        [0, 3, 9, 12],
        [1, 4, 10],
        [2, 5, 11],
        [6, 7, 8, 13],
    ]


def test_support_and_queries_are_disjoint_and_of_the_named_class() -> None:
    for episode in fixed_episodes(LABELS, SHAPE, 50, 0, "test"):
        assert episode.support.shape == (3, 1)
        assert episode.query.shape == (3, 2)
        everything = np.concatenate((episode.support, episode.query), 1)
        assert len(set(everything.reshape(-1).tolist())) == 9
        assert len(set(episode.classes.tolist())) == 3
        assert (LABELS[everything] == episode.classes[:, None]).all()


def test_same_seed_same_episodes_whatever_their_number() -> None:
    few, many = (list(fixed_episodes(LABELS, SHAPE, n, 3, "test")) for n in (5, 9))
    for one, other in zip(few, many, strict=False):
        assert (one.support == other.support).all()
        assert (one.query == other.query).all()
    elsewhere = next(fixed_episodes(LABELS, SHAPE, 1, 4, "test"))
    assert not (few[0].query == elsewhere.query).all()


def test_episodes_differ_and_every_class_is_drawn() -> None:
    drawn = list(fixed_episodes(LABELS, SHAPE, 20, 0, "test"))
    assert set(np.concatenate([e.classes for e in drawn]).tolist()) == {0, 1, 2, 3}
    assert any((a.classes != b.classes).any() for a, b in itertools.pairwise(drawn))


def test_too_few_classes() -> None:
    with pytest.raises(ConfigError, match="validation: 4 classes are too few for 5-way 1-shot"):
        next(fixed_episodes(LABELS, EpisodeShape(5, 1, 1), 1, 0, "validation"))


def test_too_few_images_names_the_class_and_what_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"class 1 has 3 images, too few .* 4 are needed"):
        require_enough(images_of_classes(LABELS), EpisodeShape(3, 2, 2), "base")


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 0, 1), (2, 1, 0)])
def test_bad_shapes(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        EpisodeShape(*sizes)
