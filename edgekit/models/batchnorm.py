"""BatchNorm statistics, measured anew."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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


def restate(network: nn.Module, batches: Sequence[Tensor]) -> None:
    """Let every BatchNorm store what its inputs are, without changing what the network computes.

    With measured mean ``m'`` and deviation ``d'`` in place of ``m`` and ``d``, the scale becomes
    ``g d' / d`` and the offset ``b + g (m' - m) / d``. A network that was trained on fixed
    statistics thus tells calibration the truth about its activations.

    Args:
        network: changed in place, in evaluation mode; each of its BatchNorms runs once.
        batches: inputs ``[N, ...]`` as the network will see them; each counts the same.
    """
    network.eval()
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    sums: dict[nn.Module, list[Tensor]] = {norm: [] for norm in norms}

    def measure(norm: nn.Module, args: tuple[Tensor]) -> None:
        x = args[0].transpose(0, 1).flatten(1)
        sums[norm].append(torch.stack((x.mean(1), x.square().mean(1))))

    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    with torch.no_grad():
        for batch in batches:
            network(batch)
        for norm in norms:
            mean, square = torch.stack(sums[norm]).mean(0)
            _restate(norm, mean, (square - mean.square()).clamp(min=0.0))
    for hook in hooks:
        hook.remove()


def _restate(norm: nn.modules.batchnorm._BatchNorm, mean: Tensor, variance: Tensor) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    before = (norm.running_var + norm.eps).sqrt()
    gain = norm.weight / before
    norm.bias.add_(gain * (mean - norm.running_mean))
    norm.weight.copy_(gain * (variance + norm.eps).sqrt())
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
