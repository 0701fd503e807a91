"""BatchNorm statistics, measured anew."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def recalibrate(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace what every BatchNorm stores by the mean over some batches.

    While generators train, fake pictures and real ones pass through the same BatchNorm, and the
    running mean forgets within few steps. The network comes back in evaluation mode.

    Args:
        network: changed in place.
        batches: inputs ``[N, ...]`` as the network will see them; each counts the same.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over what follows
    network.train()
    with torch.no_grad():
        for batch in batches:
            network(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()
