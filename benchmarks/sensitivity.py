"""What mixed precision expects of every layer without data, beside what real images show.

    python -m benchmarks.sensitivity

Expected is the squared error at the logits, in shares of their variance, that 4-bit weights of one
layer add (:mod:`edgekit.sensitivity`); measured is that of the float network with this layer's
4-bit codes and corrected bias alone, on evaluation images. The last line of a network sets the drop
in top-1 that the rule expects of 4 bits everywhere beside the one that is measured.
``benchmarks/README.md`` says more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, fx

from benchmarks._cases import CASES, DATA_VARIABLE, Case, DataError, find_data
from benchmarks._fidelity import (
    captured_case,
    float_outputs,
    image_tensor,
    logit_kl,
    lowered_outputs,
)
from benchmarks._images import ImageSet
from benchmarks._record import Recording
from edgekit.artifacts import quantize_nearest
from edgekit.calibrate import calibrate, samples_of
from edgekit.graph import constant
from edgekit.quant.affine import WeightCodes
from edgekit.quantized import QuantizedModel
from edgekit.reference import along, channel_axis
from edgekit.rounding import round_weights
from edgekit.sensitivity import expected_drop, measure_sensitivity
from edgekit.sites import Role, layer_name
from edgekit.types import Effort, Rounding

_SCHEMA = 1
_USER_ERROR = 2
_SCHEME, _BITS = "w4a8", 4
_TARGET = "openvino"
_LEAST = 1e-9


@dataclass(frozen=True)
class Layer:
    """One layer: squared errors at the logits in shares of their variance."""

    name: str
    weights: int
    expected: float
    measured: float


@dataclass(frozen=True)
class Agreement:
    """How well what is expected foretells what is measured.

    Attributes:
        rank_correlation: Spearman's, over layers.
        ratio: geometric mean of expected / measured.
        spread: factor within which two thirds of the layers lie of that mean.
        sum_ratio: sum of expected / sum of measured.
        expected_drop: points of top-1, of 4 bits in all layers, by the rule.
        measured_drop: the same on all evaluation images, simulated.
        kl: mean divergence of the classes' distributions there, nats.
    """

    rank_correlation: float
    ratio: float
    spread: float
    sum_ratio: float
    expected_drop: float
    measured_drop: float
    kl: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 when it is done, 2 when it cannot run."""
    options = _parse(arguments)
    names = options.networks.split(",")
    try:
        unknown = sorted(set(names) - set(CASES))
        if unknown:
            raise DataError(f"unknown network {', '.join(unknown)}; known: {', '.join(CASES)}")
        data = find_data(names)
    except DataError as error:
        print(error, file=sys.stderr)
        return _USER_ERROR
    recording = Recording()
    networks = {}
    for name in names:
        layers, summary = _measure(CASES[name], data, options)
        _print(name, layers, summary)
        networks[name] = {"summary": asdict(summary), "layers": [asdict(row) for row in layers]}
    content = {
        "options": {k: str(v) for k, v in vars(options).items() if k != "json"},
        "networks": networks,
    }
    recording.save(options.json, _SCHEMA, content)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sensitivity", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--networks", default="cifar10_resnet20,cifar10_resnet8", help=f"of {', '.join(CASES)}")
    add("--calibration", default="renorm", help="engine or file (default renorm)")
    add("--seed", type=int, default=0, help="of the calibration")
    add("--layer-images", type=int, default=64, help="images for each single layer (default 64)")
    add("--images", type=int, default=1000, help="images for the drop (default 1000)")
    add("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.epilog = f"The evaluation data is found through {DATA_VARIABLE}."
    return parser.parse_args(arguments)


def _measure(case: Case, data: Path, options: argparse.Namespace) -> tuple[list[Layer], Agreement]:
    model = captured_case(case, data)
    samples = samples_of(options.calibration)
    statistics = calibrate(model, options.calibration, samples=samples, seed=options.seed)
    nearest = quantize_nearest(model, statistics, _SCHEME, end_bits=_BITS)
    sensitivity = measure_sensitivity(nearest)
    added = {layer.name: layer.narrow for layer in sensitivity.layers if layer.narrow is not None}
    rounded = round_weights(nearest, Rounding.GPTQ, Effort.INSTANT, options.seed)
    images = image_tensor(case, data, options.images)
    real = _single_layer_errors(rounded, images[: options.layer_images])
    sizes = {layer.name: layer.values for layer in sensitivity.layers}
    layers = [Layer(name, sizes[name], value, real[name]) for name, value in added.items()]
    wanted = float_outputs(model, images)
    found = lowered_outputs(rounded, images, targets=[_TARGET])[_TARGET]
    named = ImageSet(case, data, options.images)
    labels = np.array([named.label(position) for position in range(len(named))])
    drop = 100.0 * float(np.mean(wanted.argmax(1) == labels) - np.mean(found.argmax(1) == labels))
    rule = expected_drop(model.task, sensitivity.base + sum(added.values()))
    return layers, _agreement(layers, rule, drop, float(logit_kl(wanted, found).mean()))


def _single_layer_errors(model: QuantizedModel, images: Tensor) -> dict[str, float]:
    """Return the relative squared error at the logits with one layer's narrow codes at a time."""
    sited = model.sited
    graph = sited.model.graph
    layers = {}
    for site in sited.sites:
        if site.role is Role.WEIGHT:
            consumer = sited.node(site.consumer)
            layers[layer_name(consumer)] = (consumer, sited.node(site.tensor))
    with torch.no_grad():
        means: dict[fx.Node, Tensor] = {}
        wanted = _first(_Means(graph, {node for node, _ in layers.values()}, means).run(images))
        variance = float((wanted - wanted.mean(0)).square().mean())
        errors = {}
        for name, (consumer, tensor) in layers.items():
            codes = model.codes.get(name)
            if codes is None or codes.bits > _BITS:
                continue
            with _replaced(graph, tensor, codes):
                found = _first(_Corrected(graph, consumer, means[consumer]).run(images))
            errors[name] = float((found - wanted).square().mean()) / variance
    return errors


class _Means(fx.Interpreter):
    """Keeps the mean of every channel of what some nodes compute."""

    def __init__(self, graph: fx.GraphModule, nodes: set[fx.Node], means: dict[fx.Node, Tensor]):
        super().__init__(graph)
        self._nodes, self._means = nodes, means

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n in self._nodes:
            assert isinstance(value, Tensor)
            self._means[n] = _channel_mean(n, value)
        return value


class _Corrected(fx.Interpreter):
    """Gives one node's channels the mean that they had, as a corrected bias does."""

    def __init__(self, graph: fx.GraphModule, node: fx.Node, mean: Tensor):
        super().__init__(graph)
        self._node, self._mean = node, mean

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n is not self._node:
            return value
        assert isinstance(value, Tensor)
        shift = self._mean - _channel_mean(n, value)
        return value + along(shift, channel_axis(n, value), value)


def _channel_mean(node: fx.Node, value: Tensor) -> Tensor:
    axis = channel_axis(node, value)
    return value.mean([other for other in range(value.dim()) if other != axis])


@contextmanager
def _replaced(graph: fx.GraphModule, tensor: fx.Node, codes: WeightCodes) -> Iterator[None]:
    """Let a weight have the values of its codes meanwhile."""
    weight = constant(graph, tensor)
    assert weight is not None
    kept = weight.clone()
    weight.copy_(codes.dequantize())
    try:
        yield
    finally:
        weight.copy_(kept)


def _first(outputs: object) -> Tensor:
    value = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
    assert isinstance(value, Tensor)
    return value


def _agreement(layers: Sequence[Layer], rule: float, drop: float, kl: float) -> Agreement:
    expected = np.array([layer.expected for layer in layers])
    measured = np.array([layer.measured for layer in layers])
    logs = np.log(np.maximum(expected, _LEAST) / np.maximum(measured, _LEAST))
    low, high = np.percentile(logs - logs.mean(), [100 / 6, 500 / 6])
    return Agreement(
        rank_correlation=rank_correlation(expected, measured),
        ratio=float(np.exp(logs.mean())),
        spread=float(np.exp(max(-low, high))),
        sum_ratio=float(expected.sum() / measured.sum()),
        expected_drop=rule,
        measured_drop=drop,
        kl=kl,
    )


def rank_correlation(left: np.ndarray, right: np.ndarray) -> float:
    """Return Spearman's rank correlation of two series without ties."""
    ranks = [values.argsort().argsort() for values in (left, right)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _print(name: str, layers: Sequence[Layer], summary: Agreement) -> None:
    for layer in layers:
        print(f"{name} {layer.name:40} {layer.expected:.5f} {layer.measured:.5f}")
    told: Mapping[str, float] = asdict(summary)
    print(f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in told.items()), flush=True)


if __name__ == "__main__":
    sys.exit(main())
