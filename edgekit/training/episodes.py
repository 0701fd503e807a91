"""Few-shot tasks: N classes, K examples of each to learn from, and queries to name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.errors import ConfigError


@dataclass(frozen=True, slots=True)
class EpisodeShape:
    """Size of a task: ``ways`` classes, with ``shots`` examples and ``queries`` of each."""

    ways: int = 5
    shots: int = 1
    queries: int = 15

    def __post_init__(self) -> None:
        for name, least in (("ways", 2), ("shots", 1), ("queries", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"episodes: {name}={getattr(self, name)}, expected {least} up")

    def __str__(self) -> str:
        return f"{self.ways}-way {self.shots}-shot, {self.queries} queries a class"


@dataclass(frozen=True, slots=True)
class Episode:
    """One task; class number k of the task is ``classes[k]``.

    Attributes:
        classes: ``[N]``, in random order.
        support: indices of examples ``[N, K]``.
        query: indices of queries ``[N, Q]``; none of them is in ``support``.
    """

    classes: np.ndarray
    support: np.ndarray
    query: np.ndarray


def images_of_classes(labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the indices of each class's images, for labels ``[N]`` that count from zero."""
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels))
    return tuple(np.split(order, ends[:-1]))


def require_enough(members: Sequence[np.ndarray], shape: EpisodeShape, what: str) -> None:
    """Refuse a set that has no episode of this size.

    Args:
        members: image indices of each class.
        shape: size of an episode.
        what: the set, for the message.

    Raises:
        ConfigError: too few classes, or a class with too few images.
    """
    if len(members) < shape.ways:
        raise ConfigError(
            f"{what}: {len(members)} classes are too few for {shape}",
            "add classes, or take fewer ways",
        )
    needed = shape.shots + shape.queries
    number, fewest = min(enumerate(map(len, members)), key=lambda item: item[1])
    if fewest < needed:
        raise ConfigError(
            f"{what}: class {number} has {fewest} images, too few for {shape}: "
            f"{needed} are needed of every class",
            "add images, or take fewer shots or queries",
        )


def draw_episode(
    members: Sequence[np.ndarray], shape: EpisodeShape, rng: np.random.Generator
) -> Episode:
    """Draw a task; call :func:`require_enough` first.

    Args:
        members: image indices of each class.
        shape: its size.
        rng: source of everything random.
    """
    classes = rng.choice(len(members), shape.ways, replace=False)
    taken = np.stack(
        [rng.choice(members[c], shape.shots + shape.queries, replace=False) for c in classes]
    )
    return Episode(classes, taken[:, : shape.shots], taken[:, shape.shots :])


def fixed_episodes(
    labels: np.ndarray, shape: EpisodeShape, count: int, seed: int, what: str
) -> Iterator[Episode]:
    """Yield the same tasks whenever labels, size and seed are the same.

    Task number k does not depend on how many follow it.

    Raises:
        ConfigError: there are too few classes or images.
    """
    members = images_of_classes(labels)
    require_enough(members, shape, what)
    for index in range(count):
        yield draw_episode(members, shape, np.random.default_rng([seed, index]))
