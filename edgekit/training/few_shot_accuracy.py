"""Accuracy of embeddings on fixed episodes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from edgekit.few_shot import Metric, prototypes, scores

from .episodes import Episode


def episode_accuracies(
    embeddings: np.ndarray, episodes: Iterable[Episode], metric: Metric
) -> np.ndarray:
    """Return the share of right queries in each episode, percent, ``[E]``.

    Args:
        embeddings: of all pictures that episodes point to, ``[N, C]``.
        episodes: the tasks.
        metric: how queries are compared with prototypes.
    """
    found = []
    for episode in episodes:
        means = prototypes(embeddings[episode.support])
        ways, queries = episode.query.shape
        named = scores(embeddings[episode.query.reshape(-1)], means, metric).argmax(1)
        found.append(100.0 * float((named == np.repeat(np.arange(ways), queries)).mean()))
    return np.array(found)
