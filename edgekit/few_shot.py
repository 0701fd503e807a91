"""Classes from a few examples each: prototypes and two metrics. No torch: this runs on a device.

A class is the mean of its support embeddings, and a query takes the class of the best score. There
is no training and no solver: this is the head of DCAP (arXiv 2103.16009).
"""

from __future__ import annotations

import enum

import numpy as np

from edgekit.errors import ConfigError

_TINY = 1e-12  # below any norm that a network puts out


class Metric(str, enum.Enum):
    """How a query is compared with a prototype.

    ``PROJECTION``: the length of the query along the prototype's direction. ``COSINE``: of the
    angle between both.
    """

    PROJECTION = "projection"
    COSINE = "cosine"


def prototypes(support: np.ndarray) -> np.ndarray:
    """Return the mean of each class, ``[N, C]``.

    Args:
        support: embeddings of N classes with K examples each, ``[N, K, C]``.

    Raises:
        ConfigError: the array has another form or is empty.
    """
    if support.ndim != 3 or 0 in support.shape:
        raise ConfigError(f"support embeddings are {list(support.shape)}, expected [N, K, C]")
    means: np.ndarray = support.mean(1)
    return means


def scores(queries: np.ndarray, means: np.ndarray, metric: Metric) -> np.ndarray:
    """Score queries against prototypes, ``[Q, N]``; the largest wins.

    Projection: ``z . p / |p|``. Cosine: ``z . p / (|z| |p|)``.

    Args:
        queries: embeddings ``[Q, C]``.
        means: prototypes ``[N, C]``.
        metric: which of both.
    """
    along: np.ndarray = queries @ _unit(means).T
    if metric is Metric.PROJECTION:
        return along
    found: np.ndarray = along / np.maximum(np.linalg.norm(queries, axis=1), _TINY)[:, None]
    return found


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), _TINY)
    unit: np.ndarray = vectors / lengths
    return unit
