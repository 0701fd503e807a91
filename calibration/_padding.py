"""What zero padding does to the mean of a convolution's results.

Quantizers that correct a bias quickly (NNCF's default) run each convolution on an input that holds
each channel's mean over the calibration set everywhere, and take the difference from the true mean
of the results for an error of quantization. Around the border, where zeros stand in for some of
the input, the true inputs need not lie at their mean, so a part of the difference is none: up to
0.05 of a channel's deviation on ResNet-20, and corrected all the same. A set of inputs whose
channels have the same mean at the border as inside leaves nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx

from edgekit.capture import CapturedModel
from edgekit.graph import OpKind, argument, constant, op_kind

from ._statistics_losses import Distance, Scale
from ._teacher import NormLayer

aten = torch.ops.aten


def with_padding_shifts(model: CapturedModel) -> tuple[CapturedModel, tuple[str, ...]]:
    """Return the network with an output for what padding shifts in each convolution.

    Such an output is ``[1, C]``: the mean of the batch's results, less the result's mean on the
    batch's mean input. Padded convolutions count in front of a BatchNorm alone, whose stored
    deviation says how much a shift is.

    Args:
        model: the network; its parameters are shared, its graph is not altered.

    Returns:
        The network, whose specifications do not list the outputs that come last, and the names of
        their BatchNorms.
    """
    graph = fx.Graph()
    results = graph.graph_copy(model.graph.graph, {})
    assert isinstance(results, tuple)
    shifts: list[fx.Node] = []
    norms: list[str] = []
    for norm in list(graph.nodes):
        layer = norm.args[0] if op_kind(norm) is OpKind.BATCH_NORM else None
        if isinstance(layer, fx.Node) and _is_padded(layer):
            weight = constant(model.graph, layer.args[1])
            if weight is not None:
                shifts.append(_shift(graph, layer, list(range(2, weight.dim()))))
                norms.append(norm.name)
    graph.output((*results, *shifts))
    return replace(model, graph=fx.GraphModule(model.graph, graph)), tuple(norms)


def _is_padded(node: fx.Node) -> bool:
    padding = argument(node, 4, "padding", 0) if op_kind(node) is OpKind.CONV else 0
    sizes = padding if isinstance(padding, (list, tuple)) else (padding,)
    return any(size not in (0, "valid") for size in sizes)


def _shift(graph: fx.Graph, layer: fx.Node, space: list[int]) -> fx.Node:
    source, *others = layer.args
    assert isinstance(source, fx.Node)
    with graph.inserting_before(layer):
        mean = graph.call_function(aten.mean.dim, (source, [0, *space], True))
        one = graph.call_function(aten.slice.Tensor, (source, 0, 0, 1))
        nothing = graph.call_function(aten.zeros_like.default, (one,))
        everywhere = graph.call_function(aten.add.Tensor, (nothing, mean))
        assumed = graph.call_function(
            layer.target,  # type: ignore[arg-type]
            (everywhere, *others),
            dict(layer.kwargs),
        )
    with graph.inserting_after(layer):
        true = graph.call_function(aten.mean.dim, (layer, [0, *space]))
    with graph.inserting_after(true):
        expected = graph.call_function(aten.mean.dim, (assumed, [0, *space]))
    with graph.inserting_after(expected):
        difference = graph.call_function(aten.sub.Tensor, (true, expected))
    with graph.inserting_after(difference):
        return graph.call_function(aten.unsqueeze.default, (difference, 0))


class PaddingShift:
    """The shifts of a set of which a part is at hand, in units of the stored deviations.

    Args:
        norms: the BatchNorms behind the padded convolutions, at least one.
        parts: number of parts; all hold the same number of samples.
    """

    def __init__(self, norms: Sequence[NormLayer], parts: int) -> None:
        self._weight = Distance.over(norms, Scale.RELATIVE).mean_weight
        self._rows: list[Tensor | None] = [None] * parts

    def with_part(self, index: int, shifts: Sequence[Tensor]) -> Tensor:
        """Return the mean squared shift with part ``index`` as just seen, which carries gradients.

        A set's shift is the mean of its parts' shifts, as all of it is linear in the input's mean.
        """
        live = torch.cat([shift.mean(0) for shift in shifts])
        others = [row for i, row in enumerate(self._rows) if i != index and row is not None]
        self._rows[index] = live.detach()
        return torch.stack([live, *others]).mean(0).square() @ self._weight

    def state(self) -> list[Tensor | None]:
        """Return what a checkpoint keeps."""
        return list(self._rows)

    def restore(self, state: Sequence[Tensor | None]) -> None:
        """Take over what :meth:`state` returned."""
        self._rows = list(state)
