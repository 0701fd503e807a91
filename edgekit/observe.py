"""Run a captured graph and gather statistics of its tensors on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from edgekit.capture import CapturedModel
from edgekit.graph import (
    OpKind,
    activation_nodes,
    argument,
    foldable_layer,
    is_float_tensor,
    op_kind,
)
from edgekit.quant.statistics import Statistics, TensorObserver
from edgekit.synthetic import SyntheticSet

NodeOverride = Callable[[fx.Node, tuple[object, ...]], object]
"""Computes a node instead of its operator, from the node and its evaluated arguments."""


class _MomentSum:
    """Mean of second moments over batches, each with the weight of its samples."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._samples = 0

    def add(self, layer: fx.Node, x: object, weight: object) -> None:
        assert isinstance(x, Tensor)
        part = second_moment(layer, x, weight) * x.shape[0]
        self._total = part if self._total is None else self._total + part
        self._samples += x.shape[0]

    def mean(self) -> Tensor:
        assert self._total is not None
        return self._total / self._samples


class _Observing(fx.Interpreter):
    def __init__(
        self,
        graph: fx.GraphModule,
        observers: Mapping[str, TensorObserver],
        overrides: Mapping[str, NodeOverride],
        layers: Mapping[str, _MomentSum],
    ) -> None:
        super().__init__(graph)
        self._observers = observers
        self._overrides = overrides
        self._layers = layers

    def run_node(self, n: fx.Node) -> object:
        override = self._overrides.get(n.name)
        if override is None:
            value = super().run_node(n)
        else:
            args, _ = self.fetch_args_kwargs_from_env(n)
            value = override(n, args)
        if n.name in self._layers:
            source = self.env[n.args[0]]  # type: ignore[index]
            self._layers[n.name].add(n, source, self.env[n.args[1]])  # type: ignore[index]
        observer = self._observers.get(n.name)
        if observer is not None:
            assert isinstance(value, Tensor)
            observer.update(value)
        return value


def observe(
    model: CapturedModel,
    batches: Iterable[tuple[Tensor, ...]],
    *,
    method: str,
    generator: torch.Generator,
    overrides: Mapping[str, NodeOverride] | None = None,
    second_moments: Sequence[str] = (),
    margin: float = 1.0,
    on_batch: Callable[[int], None] | None = None,
) -> Statistics:
    """Feed batches through the graph and return statistics of every float activation.

    Args:
        model: the network, with its BatchNorms.
        batches: tuples of network inputs.
        method: the calibration method, recorded as the rule behind each range.
        generator: picks the sampled values.
        overrides: nodes, by name, that the method computes differently.
        second_moments: weighted nodes whose input second moments are wanted.
        margin: widening of the ranges that the samples need (see :class:`TensorStatistics`).
        on_batch: called with the number of finished batches.
    """
    observers = {
        node.name: TensorObserver(channel_axis(node), generator, method, margin)
        for node in _observable(model.graph)
    }
    layers = {name: _MomentSum() for name in second_moments}
    interpreter = _Observing(model.graph, observers, overrides or {}, layers)
    seen = 0
    with torch.no_grad():
        for count, batch in enumerate(batches, start=1):
            interpreter.run(*batch)
            seen += batch[0].shape[0]
            if on_batch is not None:
                on_batch(count)
    return Statistics(
        tensors={name: observer.statistics() for name, observer in observers.items()},
        method=method,
        samples=seen,
        second_moments={name: moments.mean() for name, moments in layers.items()},
    )


def observe_set(
    model: CapturedModel,
    made: SyntheticSet,
    size: int,
    *,
    seed: int,
    second_moments: Sequence[str] = (),
) -> Statistics:
    """Feed a set of inputs through the unaltered network; the statistics keep the set.

    Args:
        model: the network, on the device where it is to run.
        made: the inputs.
        size: samples at a time, where the network takes any number.
        seed: picks the sampled values.
        second_moments: weighted nodes whose input second moments are wanted.
    """
    device = next((p.device for p in model.graph.state_dict().values()), torch.device("cpu"))
    batches = made.batches(size if model.batch else model.inputs[0].shape[0])
    statistics = observe(
        model,
        (tuple(value.to(device) for value in batch) for batch in batches),
        method=made.engine,
        generator=torch.Generator().manual_seed(seed),
        second_moments=second_moments,
    )
    return replace(statistics, inputs=made)


def with_notes(statistics: Statistics, *notes: str) -> Statistics:
    """Return the statistics with remarks for the report."""
    return replace(statistics, notes=(*statistics.notes, *notes))


def _observable(graph_module: fx.GraphModule) -> list[fx.Node]:
    """Float activations, less the layer outputs that folding removes."""
    active = activation_nodes(graph_module.graph)
    folded = {foldable_layer(graph_module, node) for node in graph_module.graph.nodes}
    return [
        node
        for node in graph_module.graph.nodes
        if node in active and is_float_tensor(node) and node not in folded
    ]


def channel_axis(node: fx.Node) -> int:
    """Return the axis that holds a tensor's channels, as its readers or its producer see them."""
    kinds = [op_kind(user) for user in node.users] + [op_kind(node)]
    for kind in kinds:
        if kind in (OpKind.CONV, OpKind.CONV_TRANSPOSE, OpKind.BATCH_NORM):
            return 1
        if kind is OpKind.LINEAR:
            return -1
    return 1 if node.meta["val"].dim() >= 4 else -1


def second_moment(node: fx.Node, x: object, weight: object) -> Tensor:
    """Return ``E[u u^T]`` of a layer's unfolded input, ``[groups, K, K]`` float32.

    ``K`` is the number of weights that each output channel multiplies; the mean runs over samples
    and output positions. Frantar et al., "GPTQ" (2023), use twice this matrix as Hessian.
    """
    assert isinstance(x, Tensor) and isinstance(weight, Tensor)
    rows = unfolded_rows(node, x, weight)
    return torch.bmm(rows.transpose(1, 2), rows) / rows.shape[1]


def unfolded_rows(node: fx.Node, x: Tensor, weight: Tensor) -> Tensor:
    """Return what each output position multiplies by the weights, ``[groups, positions, K]``."""
    if op_kind(node) is OpKind.LINEAR:
        return x.reshape(1, -1, x.shape[-1])
    assert op_kind(node) is OpKind.CONV and x.dim() == 4, "second moments need a 2-D convolution"
    stride, padding, dilation = (
        argument(node, i, k) for i, k in ((3, "stride"), (4, "padding"), (5, "dilation"))
    )
    groups = argument(node, 6, "groups", 1)
    assert isinstance(groups, int)
    kernel, steps = weight.shape[2:], _pair(dilation, 1)
    if isinstance(padding, str):
        x, padding = _padded(x, kernel, steps) if padding == "same" else x, 0
    unfolded = F.unfold(x, kernel, steps, _pair(padding, 0), _pair(stride, 1))
    split: Tensor = unfolded.unflatten(1, (groups, -1))
    return split.permute(1, 0, 3, 2).flatten(1, 2)


def _padded(x: Tensor, kernel: Sequence[int], dilation: tuple[int, int]) -> Tensor:
    """Pad as ``padding="same"`` does: the odd one of an uneven total goes to the end."""
    totals = [step * (size - 1) for size, step in zip(kernel, dilation, strict=True)]
    height, width = totals
    return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))


def _pair(value: object, default: int) -> tuple[int, int]:
    if value is None:
        return default, default
    if isinstance(value, int):
        return value, value
    first, *rest = (int(v) for v in value)  # type: ignore[attr-defined]
    return first, rest[0] if rest else first
