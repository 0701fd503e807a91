"""Forward-only calibration: BatchNorm in batch mode over structured noise (our own method).

A BatchNorm in evaluation mode maps its input by stored statistics that random inputs do not have,
so ranges drift from layer to layer. With batch statistics every BatchNorm output has exactly the
mean beta and spread |gamma| that it has on real data, at every depth: statistics matching by
construction instead of by optimising pixels. Costs seconds, needs no gradient, label or datum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from edgekit.capture import CapturedModel
from edgekit.graph import OpKind, argument, op_kind
from edgekit.observe import NodeOverride, observe, with_notes
from edgekit.quant.statistics import Statistics
from edgekit.signals import random_batches
from edgekit.synthetic import SyntheticSet
from edgekit.types import Progress, no_progress

_VARIANCE_FLOOR = 1e-4
"""Smallest batch variance relative to the stored one: a channel that random inputs leave constant
would otherwise be blown up to full spread out of rounding noise."""


MARGIN = 1.3
"""Widening of the ranges: real data has heavier tails than random inputs. Chosen on set A
(ResNet-20, ResNet-8: logit KL falls by half against 1.0, and 1.6 is no better)."""


@dataclass(frozen=True, slots=True)
class Renorm:
    """Options of the method: sample count, batch size and seed."""

    samples: int = 64
    batch: int = 32
    seed: int = 0

    def observe(
        self,
        model: CapturedModel,
        *,
        second_moments: Sequence[str] = (),
        progress: Progress = no_progress,
    ) -> Statistics:
        """Return statistics of every float activation of ``model``.

        The samples that come with them mean nothing outside this altered pass.
        """
        generator = torch.Generator().manual_seed(self.seed)
        batches = list(random_batches(model, self.samples, self.batch, generator))
        total = len(batches)
        statistics = observe(
            model,
            batches,
            method="renorm",
            generator=generator,
            overrides=_overrides(model, generator),
            second_moments=second_moments,
            margin=MARGIN,
            on_batch=lambda done: progress("calibrate", done / total),
        )
        noise = tuple(torch.cat(values) for values in zip(*batches, strict=True))
        statistics = replace(statistics, inputs=SyntheticSet(noise, None, "renorm"), altered=True)
        norms = [node for node in model.graph.graph.nodes if op_kind(node) is OpKind.BATCH_NORM]
        if not norms:
            return with_notes(
                statistics,
                "the network has no BatchNorm, so no stored statistics: ranges come from "
                "structured noise alone",
            )
        return statistics


def _overrides(model: CapturedModel, generator: torch.Generator) -> dict[str, NodeOverride]:
    """BatchNorms in batch mode, and pooling behind the last of them by one random position."""
    nodes = list(model.graph.graph.nodes)
    pinned: set[fx.Node] = set()  # nodes with a BatchNorm downstream
    for node in reversed(nodes):
        if any(op_kind(user) is OpKind.BATCH_NORM or user in pinned for user in node.users):
            pinned.add(node)
    overrides: dict[str, NodeOverride] = {}
    for node in nodes:
        if op_kind(node) is OpKind.BATCH_NORM:
            overrides[node.name] = _batch_mode
        elif pinned and node not in pinned and op_kind(node) is OpKind.GLOBAL_POOL:
            overrides[node.name] = lambda n, args: _one_position(n, args, generator)
    return overrides


def _one_position(node: fx.Node, args: tuple[object, ...], generator: torch.Generator) -> Tensor:
    """Return the features of one random position in place of their mean over all positions.

    Random images hold no object, so the mean over positions barely differs between images, and
    ranges behind it would be too narrow for real ones. One position has the same channel means
    and bounds the mean from outside: it is what a mean over fully correlated positions would be.
    """
    x = args[0]
    assert isinstance(x, Tensor)
    flat = x.flatten(2)
    index = torch.randint(flat.shape[2], (x.shape[0], 1, 1), generator=generator).to(x.device)
    return flat.gather(2, index.expand(-1, x.shape[1], 1)).reshape(
        [x.shape[0], *node.meta["val"].shape[1:]]
    )


def _batch_mode(node: fx.Node, args: tuple[object, ...]) -> Tensor:
    """Normalise by the batch's own statistics; the stored ones stay untouched."""
    x, gamma, beta, center, stored = args[:5]
    eps = argument(node, 7, "eps", 1e-5)
    assert isinstance(x, Tensor) and isinstance(eps, float)
    weight = gamma if isinstance(gamma, Tensor) else None
    bias = beta if isinstance(beta, Tensor) else None
    if x.numel() == x.shape[1] and isinstance(center, Tensor) and isinstance(stored, Tensor):
        # one value for each channel has no spread: normalised by itself it would always be beta
        return torch.batch_norm(x, weight, bias, center, stored, False, 0.0, eps, False)
    normal, mean, inverse = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
    if not isinstance(stored, Tensor):
        return normal
    floor = (_VARIANCE_FLOOR * stored + eps).rsqrt()  # the largest factor that is allowed
    dead = inverse > floor
    if dead.any():
        shape = [1, -1] + [1] * (x.dim() - 2)
        scale = (floor if weight is None else floor * weight)[dead]
        shift = (torch.zeros_like(mean) if bias is None else bias)[dead] - mean[dead] * scale
        normal[:, dead] = x[:, dead] * scale.reshape(shape) + shift.reshape(shape)
    return normal
