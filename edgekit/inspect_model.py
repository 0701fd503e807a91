"""What edgekit sees in a network before it quantizes it, and what each target will do with it.

Nothing is calibrated: which layers run on integers follows from the graph and the targets' rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import fx

from edgekit.calibrate import choose
from edgekit.capture import CapturedModel
from edgekit.graph import (
    WEIGHTED,
    OpKind,
    argument,
    constant,
    fetch,
    foldable_layer,
    op_kind,
    op_name,
)
from edgekit.loading import LoadedModel, load
from edgekit.lowering import TRANSPARENT, place
from edgekit.options import InputOption
from edgekit.passes.fold_batchnorm import fold_batchnorm
from edgekit.quant.statistics import Statistics
from edgekit.registry import RUNNERS, TARGETS, resolve
from edgekit.signals import input_domain
from edgekit.sites import SitedModel, insert_sites, layer_name
from edgekit.target import Target
from edgekit.types import Cpu, Effort, InputSpec, Preprocessing, Task

SCHEMA_VERSION = 1
INT8 = "int8"
_EXECUTED = tuple(name for name in TARGETS if name in RUNNERS)
_NORMALIZATIONS = {
    "batch_norm": "BatchNorm",
    "instance_norm": "InstanceNorm",
    "layer_norm": "LayerNorm",
    "group_norm": "GroupNorm",
    "rms_norm": "RMSNorm",
}


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """One layer with weights.

    Attributes:
        name: its module path.
        kind: ``"conv"``, ``"depthwise conv"``, ``"conv_transpose"`` or ``"linear"``.
        weight_shape: sizes of its weight.
        parameters: weights and biases.
        normalization: what follows it; ``"BatchNorm (folded)"`` disappears in its weights.
        targets: target to ``"int8"``, or to the reason why it runs in float.
    """

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    parameters: int
    normalization: str | None
    targets: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "weight_shape": list(self.weight_shape),
            "parameters": self.parameters,
            "normalization": self.normalization,
            "targets": dict(self.targets),
        }


@dataclass(frozen=True)
class ModelInspection:
    """What was seen. ``docs/bench.md`` documents the JSON form.

    Attributes:
        model: the file.
        loaded: the network and what was stated about it.
        captured: its graph.
        parameters: number of parameters.
        normalizations: kind of normalization to its count.
        operators: operators without weights that compute something, to their count.
        calibration: the method that ``auto`` stands for.
        reasons: why, and what sets the ranges that it does not.
        layers: the layers with weights, in execution order.
    """

    model: str
    loaded: LoadedModel
    captured: CapturedModel
    parameters: int
    normalizations: Mapping[str, int]
    operators: Mapping[str, int]
    calibration: str
    reasons: tuple[str, ...]
    layers: tuple[LayerSummary, ...]

    def integer_layers(self, target: str) -> int:
        """Return how many layers a target runs on integers."""
        return sum(layer.targets[target] == INT8 for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        captured = self.captured
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "arch": self.loaded.arch,
            "source": self.loaded.source,
            "task": captured.task.value,
            "num_classes": captured.num_classes,
            "inputs": [spec.to_dict() for spec in captured.inputs],
            "outputs": [spec.to_dict() for spec in captured.outputs],
            "dynamic_batch": captured.batch,
            "preprocessing": None
            if captured.preprocessing is None
            else captured.preprocessing.to_dict(),
            "notes": [*self.loaded.notes, *captured.notes],
            "parameters": self.parameters,
            "normalizations": dict(self.normalizations),
            "operators": dict(self.operators),
            "calibration": {"method": self.calibration, "reasons": list(self.reasons)},
            "targets": {
                name: {"integer_layers": self.integer_layers(name), "layers": len(self.layers)}
                for name in _EXECUTED
            },
            "layers": [layer.to_dict() for layer in self.layers],
        }


def inspect_model(
    model: str | Path,
    *,
    arch: str | None = None,
    inputs: Sequence[InputOption] = (),
    preprocessing: Preprocessing | None = None,
    task: Task | None = None,
    cpu: Cpu = Cpu.AVX2,
    effort: Effort = Effort.STANDARD,
    trust_pickle: bool = False,
    weights: str | None = None,
) -> ModelInspection:
    """Load and capture a network and say what quantization will find.

    Args:
        model: file of weights (see :func:`edgekit.load`), as are the options.
        arch: architecture, where the file does not name it.
        inputs: input shapes, where neither file nor zoo states them.
        preprocessing: how an image becomes the first input.
        task: meaning of the first output.
        cpu: instruction set that the CPU artifacts would have to be exact on.
        effort: time budget, which decides what ``auto`` calibration is.
        trust_pickle: run what the file contains.
        weights: which of several sets of weights.

    Raises:
        EdgekitError: the file cannot be loaded, or the network cannot be captured.
    """
    loaded = load(
        model,
        arch=arch,
        inputs=inputs,
        preprocessing=preprocessing,
        task=task,
        trust_pickle=trust_pickle,
        weights=weights,
    )
    captured = loaded.capture()
    counts = Counter(op_name(node) for node in captured.graph.graph.nodes)
    norms = {name: counts[key] for key, name in _NORMALIZATIONS.items() if counts[key]}
    calibration, reason = choose(captured, "auto", effort)
    return ModelInspection(
        model=str(model),
        loaded=loaded,
        captured=captured,
        parameters=sum(parameter.numel() for parameter in loaded.module.parameters()),
        normalizations=norms,
        operators=_operators(captured),
        calibration=calibration,
        reasons=(reason, *_calibration_reasons(captured, norms)),
        layers=tuple(_layers(captured, cpu)),
    )


def _operators(captured: CapturedModel) -> dict[str, int]:
    silent = {*WEIGHTED, *TRANSPARENT, OpKind.BATCH_NORM} - {OpKind.MAX_POOL}
    nodes = [node for node in captured.graph.graph.nodes if node.op == "call_function"]
    return dict(Counter(op_name(n) for n in nodes if op_name(n) and op_kind(n) not in silent))


def _layers(captured: CapturedModel, cpu: Cpu) -> Iterator[LayerSummary]:
    norms = {
        node.args[0]: _norm_name(captured.graph, node)
        for node in captured.graph.graph.nodes
        if op_name(node) in _NORMALIZATIONS
    }
    nothing = Statistics(tensors={}, method="none", samples=0)
    sited = insert_sites(fold_batchnorm(captured, nothing)[0])
    placed = {name: _float_layers(name, sited, cpu) for name in _EXECUTED}
    for node in captured.graph.graph.nodes:
        weight = constant(captured.graph, node.args[1]) if op_kind(node) in WEIGHTED else None
        if weight is None:
            continue
        bias = constant(captured.graph, argument(node, 2, "bias"))
        name = layer_name(node)
        yield LayerSummary(
            name=name,
            kind=_kind(node, weight.shape),
            weight_shape=tuple(weight.shape),
            parameters=weight.numel() + (0 if bias is None else bias.numel()),
            normalization=norms.get(node),
            targets={target: reasons.get(node.name, INT8) for target, reasons in placed.items()},
        )


def _norm_name(graph_module: fx.GraphModule, node: fx.Node) -> str:
    name = _NORMALIZATIONS[op_name(node)]
    return f"{name} (folded)" if foldable_layer(graph_module, node) is not None else name


def _float_layers(name: str, sited: SitedModel, cpu: Cpu) -> Mapping[str, str]:
    target: Target = resolve(TARGETS, name, "target")()
    return place(sited, target.profile(cpu), target.unsupported(sited)).float_layers


def _kind(node: fx.Node, shape: Sequence[int]) -> str:
    kind = op_kind(node)
    groups = argument(node, 6, "groups", 1)
    if kind is not OpKind.CONV or groups == 1:
        return kind.value
    return "depthwise conv" if shape[1] == 1 else f"conv in {groups} groups"


def _calibration_reasons(captured: CapturedModel, norms: Mapping[str, int]) -> Iterator[str]:
    stored = norms.get("BatchNorm", 0)
    affine = [name for name in norms if name != "BatchNorm"]
    if stored:
        yield (
            f"{stored} BatchNorms hold statistics of real data: in batch mode over structured "
            "noise they give every layer the ranges it has on real data"
        )
    if affine:
        yield f"outputs of {', '.join(affine)} are bounded by their weights and biases"
    if not norms:
        yield "no normalization holds statistics: ranges come from structured noise alone"
    placeholders = captured.graph.graph.find_nodes(op="placeholder")
    for spec, node in zip(captured.inputs, placeholders, strict=True):
        yield f"input '{spec.name}': {_input_domain(captured, spec, node)}"


def _input_domain(captured: CapturedModel, spec: InputSpec, node: fx.Node) -> str:
    if not spec.dtype.startswith("float"):
        tables = [
            fetch(captured.graph, str(user.args[0].target)).shape[0]
            for user in node.users
            if op_name(user) in ("embedding", "embedding_bag")
            and isinstance(user.args[0], fx.Node)
            and user.args[0].op == "get_attr"
        ]
        if tables:
            return f"ids from 0 to {min(tables) - 1}, the rows of its embedding table"
        return "zeros and ones, because no table says which integers it takes"
    domain = input_domain(spec, captured.preprocessing)
    if domain is not None:
        return f"from {domain[0]:.4g} to {domain[1]:.4g}, as its preprocessing says"
    return "structured noise of zero mean and unit spread, because no preprocessing is stated"
