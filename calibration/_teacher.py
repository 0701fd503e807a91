"""The frozen network, run with gradients to its inputs, and what its BatchNorms see on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from edgekit.capture import CapturedModel
from edgekit.graph import OpKind, argument, constant, op_kind

from ._depthwise import depthwise_conv2d, is_depthwise


@dataclass(frozen=True)
class NormLayer:
    """Stored statistics of one BatchNorm: mean and variance of its input, ``[C]`` each."""

    name: str
    mean: Tensor
    variance: Tensor


@dataclass(frozen=True)
class Moments:
    """What one BatchNorm saw of each sample: mean of x and of x^2 over positions, ``[N, C]``."""

    first: Tensor
    second: Tensor

    def pooled(self) -> tuple[Tensor, Tensor]:
        """Return mean and biased variance over all samples and positions, ``[C]`` each."""
        mean = self.first.mean(0)
        return mean, self.second.mean(0) - mean.square()


@dataclass(frozen=True)
class TeacherPass:
    """Outputs, the moments of each BatchNorm in order of execution, and features.

    ``features`` is the input of the last weighted layer, flattened to ``[N, F]``, or the pooled
    output where there is none.
    """

    outputs: tuple[Tensor, ...]
    moments: tuple[Moments, ...]
    features: Tensor


class Teacher:
    """Runs a captured network in evaluation mode, differentiably in its inputs.

    Args:
        model: the network with its BatchNorms; its parameters get no gradient.
    """

    def __init__(self, model: CapturedModel) -> None:
        self._graph = model.graph
        nodes = model.graph.graph.nodes
        self._norms = [node for node in nodes if op_kind(node) is OpKind.BATCH_NORM]
        self.norms = tuple(_norm_layer(model.graph, node) for node in self._norms)
        self._feature = _feature_node(model.graph)

    def __call__(self, *inputs: Tensor, swing: torch.Generator | None = None) -> TeacherPass:
        """Run one batch; every tensor of the result carries gradients to ``inputs``.

        Args:
            inputs: network inputs.
            swing: shifts the input of each strided convolution by a random pixel ("swing
                convolution", Jeon et al., "GENIE", CVPR 2023), so that no optimised image can
                live on a checkerboard that only one phase of the stride sees.
        """
        run = _Run(self._graph, self._feature, swing)
        outputs = run.run(*inputs)
        moments = tuple(run.moments[node.name] for node in self._norms)
        feature = run.feature if run.feature is not None else outputs[0]
        return TeacherPass(outputs, moments, feature.flatten(1))


class _Run(fx.Interpreter):
    def __init__(
        self,
        graph: fx.GraphModule,
        feature: fx.Node | None,
        swing: torch.Generator | None,
    ) -> None:
        super().__init__(graph)
        self.moments: dict[str, Moments] = {}
        self.feature: Tensor | None = None
        self._wanted = feature
        self._swing = swing

    def run_node(self, n: fx.Node) -> object:
        kind = op_kind(n)
        if kind is OpKind.BATCH_NORM:
            x = self.env[n.args[0]]  # type: ignore[index]
            axes = list(range(2, x.dim()))
            mean = x.mean(axes) if axes else x
            second = x.square().mean(axes) if axes else x.square()
            self.moments[n.name] = Moments(mean, second)
        value = self._convolution(n) if kind is OpKind.CONV else super().run_node(n)
        if n is self._wanted:
            assert isinstance(value, Tensor)
            self.feature = value
        return value

    def _convolution(self, n: fx.Node) -> object:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        x, weight = args[:2]
        assert isinstance(x, Tensor) and isinstance(weight, Tensor)
        if self._swing is not None and x.dim() == 4 and _strided(n) and min(x.shape[2:]) > 1:
            args = (_shifted(x, self._swing), *args[1:])
        if is_depthwise(n, weight):
            return depthwise_conv2d(n, args)
        return self.call_function(n.target, args, kwargs)


def _shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift by -1, 0 or 1 pixel along each axis, reflecting at the border."""
    down, right = torch.randint(3, (2,), generator=generator).tolist()
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    return padded[:, :, down : down + x.shape[2], right : right + x.shape[3]]


def _strided(node: fx.Node) -> bool:
    stride = argument(node, 3, "stride", 1)
    sizes: Sequence[object] = stride if isinstance(stride, (list, tuple)) else (stride,)
    return any(isinstance(size, int) and size > 1 for size in sizes)


def _norm_layer(graph: fx.GraphModule, node: fx.Node) -> NormLayer:
    mean, variance = constant(graph, node.args[3]), constant(graph, node.args[4])
    assert mean is not None and variance is not None  # capture keeps evaluation mode only
    return NormLayer(node.name, mean.detach(), variance.detach())


def _feature_node(graph: fx.GraphModule) -> fx.Node | None:
    """Return the tensor that the last linear layer reads."""
    linear = [node for node in graph.graph.nodes if op_kind(node) is OpKind.LINEAR]
    source = linear[-1].args[0] if linear else None
    return source if isinstance(source, fx.Node) else None
