"""From a budget to the bit widths of every layer: measure, choose, and weigh or time the files."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.artifacts import export, quantize_nearest
from edgekit.budget import Budget, BudgetKind
from edgekit.capture import CapturedModel
from edgekit.errors import ConfigError
from edgekit.mixed import NARROW, Point, float_order, frontier, within_drop, within_size
from edgekit.quant.statistics import Statistics
from edgekit.recipe import Recipe
from edgekit.rounding.sequential import measurable_layers
from edgekit.runners.timing import TimingRequest, time_block
from edgekit.sensitivity import Sensitivity, expected_drop, measure_sensitivity
from edgekit.target_choice import target_named
from edgekit.types import FLOAT_BITS, Artifact, LayerBits, Progress, no_progress

_WIDE = LayerBits(8, 8)
_NARROW_SCHEME = "w4a8"
_TRIALS = 6  # allocations that are timed
_WARMUP_S, _BLOCK_S, _BLOCKS = 0.3, 1.0, 3


@dataclass(frozen=True)
class MixedChoice:
    """The widths of all layers, and what they were chosen from.

    Attributes:
        bits: widths by layer name.
        budget: the bound.
        sensitivity: what each layer costs.
        points: allocations by size; empty where the budget is a latency.
        chosen: what is expected of the result.
        facts: further figures for the report.
    """

    bits: Mapping[str, LayerBits]
    budget: Budget
    sensitivity: Sensitivity
    points: tuple[Point, ...]
    chosen: Point
    facts: Mapping[str, Any]

    @property
    def most_bytes(self) -> float | None:
        """Largest size of a file, where the budget bounds it."""
        if self.budget.kind is BudgetKind.SIZE:
            return self.budget.value
        if self.budget.kind is BudgetKind.SHARE:
            return self.budget.value * float(self.facts["float_bytes"])
        return None

    @property
    def summary(self) -> str:
        """One line for the report."""
        floats = sum(width.activation == FLOAT_BITS for width in self.bits.values())
        kept = f", {floats} in float" if floats else ""
        return (
            f"mixed under {self.budget}: {NARROW}-bit weights in {len(self.chosen.narrow)} of "
            f"{len(self.bits)} layers{kept}, expected to cost {self.chosen.drop:.2g} points "
            f"(a rule of thumb, right within a factor of two)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "budget": str(self.budget),
            "expected_drop": round(self.chosen.drop, 3),
            "expected_size_bytes": self.chosen.size_bytes,
            "layers": {
                layer.name: {
                    "bits": [self.bits[layer.name].weight, self.bits[layer.name].activation],
                    "weights": layer.values,
                    "error_8_bits": layer.wide,
                    "error_added_by_4_bits": layer.narrow,
                }
                for layer in self.sensitivity.layers
            },
            "frontier": [
                {"narrow": len(p.narrow), "size_bytes": p.size_bytes, "drop": round(p.drop, 3)}
                for p in self.points
            ],
            **self.facts,
        }


def size_shortfalls(
    choice: MixedChoice, directory: Path, artifacts: Sequence[Artifact], recipe: Recipe
) -> list[str]:
    """Return the files that ended larger than the budget allows, in words.

    Args:
        choice: what was chosen.
        directory: the result.
        artifacts: what was written there.
        recipe: the run's configuration.
    """
    most = choice.most_bytes
    if most is None:
        return []
    packed = set(_packing(recipe))
    sizes = {a.target: _payload(directory / a.model) for a in artifacts if a.target in packed}
    return [
        f"{target}: its file takes {size} bytes, more than {choice.budget} allows"
        for target, size in sizes.items()
        if size > most
    ]


def search_mixed(
    captured: CapturedModel,
    statistics: Statistics,
    recipe: Recipe,
    budget: Budget,
    progress: Progress = no_progress,
) -> MixedChoice:
    """Choose the widths of every layer under a budget.

    Args:
        captured: the network with its BatchNorms.
        statistics: of its activations.
        recipe: its targets, and widths of single layers that are not to be changed.
        budget: the bound.
        progress: called as the work advances.

    Raises:
        ConfigError: the budget cannot be met; the message says what can.
    """
    narrow = quantize_nearest(
        captured, statistics, _NARROW_SCHEME, end_bits=NARROW, chosen=recipe.bits
    )
    total = max(len(measurable_layers(narrow)), 1)
    sensitivity = measure_sensitivity(narrow, lambda done: progress("sensitivity", done / total))
    fixed = dict(recipe.bits)
    names = [layer.name for layer in sensitivity.layers]
    if budget.kind is BudgetKind.LATENCY:
        return _by_latency(captured, statistics, recipe, budget, sensitivity, progress)
    wide = {**dict.fromkeys(names, _WIDE), **fixed}
    with tempfile.TemporaryDirectory(prefix="edgekit-mixed-") as folder:
        wide_bytes = _packed_bytes(captured, statistics, recipe, budget, wide, Path(folder))
    float_bytes = 4 * sum(int(p.numel()) for p in captured.graph.parameters())
    points = frontier(sensitivity, captured.task, wide_bytes)
    if budget.kind is BudgetKind.DROP:
        chosen = within_drop(points, budget)
    else:
        chosen = within_size(points, sensitivity, captured.task, budget, float_bytes)
    bits = {**wide, **dict.fromkeys(chosen.narrow, LayerBits(NARROW, 8)), **fixed}
    facts = {"float_bytes": float_bytes, "wide_bytes": wide_bytes}
    return MixedChoice(bits, budget, sensitivity, points, chosen, facts)


def _packed_bytes(
    captured: CapturedModel,
    statistics: Statistics,
    recipe: Recipe,
    budget: Budget,
    bits: Mapping[str, LayerBits],
    folder: Path,
) -> int:
    """Return the size of the largest file that narrow weights make smaller."""
    targets = _packing(recipe)
    if not targets:
        raise ConfigError(
            f"{budget}: {', '.join(recipe.targets)} stores 4-bit weights in whole bytes, so "
            "that no allocation makes its file smaller",
            "add --targets onnxruntime or openvino, or use --scheme w4a8",
        )
    model = quantize_nearest(captured, statistics, "mixed", chosen=bits)
    artifacts = export(model, folder, targets=targets, cpu=recipe.cpu)
    return max(_payload(folder / artifact.model) for artifact in artifacts)


def _packing(recipe: Recipe) -> list[str]:
    """Return the targets whose files narrow weights make smaller."""
    return [n for n in recipe.targets if target_named(n).profile(recipe.cpu).packs_int4]


def _payload(model: Path) -> int:
    """Return the size of a model file, or of the weights beside it."""
    weights = model.with_suffix(".bin")
    return (weights if weights.exists() else model).stat().st_size


def _by_latency(
    captured: CapturedModel,
    statistics: Statistics,
    recipe: Recipe,
    budget: Budget,
    sensitivity: Sensitivity,
    progress: Progress,
) -> MixedChoice:
    """Keep as many layers in float as the time allows, those first that integers harm most."""
    names = [n for n in recipe.targets if target_named(n).executed]
    if not names:
        raise ConfigError(
            f"{budget}: none of {', '.join(recipe.targets)} runs on this machine",
            "give --targets onnxruntime or openvino, or --max-size",
        )
    target = names[0]
    order = [name for name in float_order(sensitivity) if name not in recipe.bits]
    layers = {layer.name: layer for layer in sensitivity.layers}
    timed: dict[int, float] = {}

    def widths(count: int) -> dict[str, LayerBits]:
        chosen = dict.fromkeys(order[:count], LayerBits(8, FLOAT_BITS))
        return {**dict.fromkeys(layers, _WIDE), **chosen, **recipe.bits}

    def measure(count: int) -> float:
        if count not in timed:
            model = quantize_nearest(captured, statistics, "mixed", chosen=widths(count))
            with tempfile.TemporaryDirectory(prefix="edgekit-mixed-") as folder:
                made = export(model, Path(folder), targets=[target], cpu=recipe.cpu)[0]
                timed[count] = _latency_ms(captured, target, Path(folder) / made.model)
            progress(f"{target}: {timed[count]:.3g} ms, {count} layers in float", 0.0)
        return timed[count]

    best = 0
    if measure(0) > budget.value:
        slowest = max(sensitivity.layers, key=lambda layer: layer.work).name
        raise ConfigError(
            f"{budget}: INT8 in all layers takes {timed[0]:.3g} ms on {target} here, most of the "
            f"work in '{slowest}'",
            f"nearest possible: --max-latency {timed[0] * 1.05:.3g}ms",
        )
    low, high = 0, len(order)
    if measure(high) <= budget.value:
        low = best = high
    while high - low > 1 and len(timed) < _TRIALS:
        middle = (low + high) // 2
        if measure(middle) <= budget.value:
            low = best = middle
        else:
            high = middle
    error = sensitivity.base - sum(layers[name].wide for name in order[:best])
    chosen = Point((), 0, expected_drop(captured.task, max(error, 0.0)))
    facts = {
        "timed_on": target,
        "latency_ms": {str(count): round(value, 4) for count, value in sorted(timed.items())},
    }
    return MixedChoice(widths(best), budget, sensitivity, (), chosen, facts)


def _latency_ms(captured: CapturedModel, target: str, model: Path) -> float:
    """Return the median of the medians of a few blocks, each in a fresh process."""
    request = TimingRequest(
        target=target,
        model=model,
        shapes={spec.name: spec.shape for spec in captured.inputs},
        batch=1,
        threads=None,
        warmup_s=_WARMUP_S,
        seconds=_BLOCK_S,
    )
    return sorted(time_block(request).p50_ms for _ in range(_BLOCKS))[_BLOCKS // 2]
