"""The losses of DCAP, on tensors with gradients."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from edgekit.few_shot import Metric


def dense_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Classify every place: the mean over n, h, w of ``CE(logits[n, :, h, w], labels[n])``.

    Args:
        logits: ``[N, K, H, W]``.
        labels: classes ``[N]``; each holds for all places of its picture.
    """
    places = labels[:, None, None].expand(-1, *logits.shape[2:])
    return F.cross_entropy(logits, places)


def episode_scores(
    support: Tensor, query: Tensor, metric: Metric, temperature: Tensor | None = None
) -> Tensor:
    """Score queries against the means of the classes, ``[Q, N]``.

    The same as :func:`edgekit.few_shot.scores` with its prototypes, but differentiable, and the
    cosine times a temperature.

    Args:
        support: embeddings ``[N, K, C]``.
        query: embeddings ``[Q, C]``.
        metric: how both are compared.
        temperature: factor of the cosine; 1 if ``None``.
    """
    means = F.normalize(support.mean(1), dim=1)
    if metric is Metric.PROJECTION:
        return query @ means.T
    cosine = F.normalize(query, dim=1) @ means.T
    return cosine if temperature is None else temperature * cosine


def episode_loss(
    support: Tensor, query: Tensor, metric: Metric, temperature: Tensor | None
) -> Tensor:
    """Return the cross entropy of the queries' classes.

    Args:
        support: embeddings ``[N, K, C]``.
        query: embeddings ``[N, Q, C]``, in the order of the classes.
        metric: how both are compared.
        temperature: see :func:`episode_scores`.
    """
    ways, queries = query.shape[:2]
    scores = episode_scores(support, query.flatten(0, 1), metric, temperature)
    wanted = torch.arange(ways, device=query.device).repeat_interleave(queries)
    return F.cross_entropy(scores, wanted)
