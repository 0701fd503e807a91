"""k-means with k-means++ seeding (Arthur and Vassilvitskii, SODA 2007)."""

from __future__ import annotations

import torch
from torch import Tensor

_RESTARTS = 4  # the seeding is random; the best of four misses the optimum rarely
_ITERATIONS = 100


def kmeans(points: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cluster points by squared distance.

    Args:
        points: ``[N, F]``, finite, on the CPU.
        count: clusters wanted; there are fewer if there are fewer distinct points.
        generator: source of the seeding.

    Returns:
        Centres ``[K, F]`` and the cluster of each point ``[N]`` int64; no cluster is empty.
    """
    runs = [_lloyd(points, _seeds(points, count, generator)) for _ in range(_RESTARTS)]
    centres, assigned, _ = min(runs, key=lambda run: run[2])
    used, assigned = assigned.unique(return_inverse=True)
    return centres[used], assigned


def squared_distances(points: Tensor, centres: Tensor) -> Tensor:
    """Return ``[N, K]`` squared distances; differentiable in ``points``."""
    cross = points @ centres.T
    squares = points.square().sum(1)[:, None] + centres.square().sum(1)
    return (squares - 2 * cross).clamp_min(0)


def _seeds(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw each further centre with a probability that grows with its squared distance."""
    chosen = [int(torch.randint(len(points), (), generator=generator))]
    nearest = (points - points[chosen[0]]).square().sum(1)
    while len(chosen) < count and float(nearest.sum()) > 0:
        chosen.append(int(torch.multinomial(nearest, 1, generator=generator)))
        nearest = nearest.minimum((points - points[chosen[-1]]).square().sum(1))
    return points[chosen]


def _lloyd(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor, float]:
    assigned = torch.full((len(points),), -1)
    for _ in range(_ITERATIONS):
        moved = squared_distances(points, centres).argmin(1)
        if torch.equal(moved, assigned):
            break
        assigned = moved
        sums = torch.zeros_like(centres).index_add_(0, assigned, points)
        sizes = torch.bincount(assigned, minlength=len(centres))[:, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp_min(1), centres)
    error = float((points - centres[assigned]).square().sum())
    return centres, assigned, error
