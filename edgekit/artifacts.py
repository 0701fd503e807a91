"""From statistics to artifacts: quantization, one lowering for each target, and its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import onnx_ir as ir

from edgekit.allocation import allocate
from edgekit.capture import CapturedModel
from edgekit.errors import ExportError, UnsupportedError
from edgekit.lowering import LoweredModel
from edgekit.passes.equalize import equalize
from edgekit.passes.fold_batchnorm import fold_batchnorm
from edgekit.passes.input_domain import with_input_domain
from edgekit.passes.measured_bias import with_measured_bias
from edgekit.passes.normalization_prior import with_normalization_prior
from edgekit.quant.statistics import Statistics
from edgekit.quantized import QuantizedModel, lower, quantize_model
from edgekit.recipe import Recipe
from edgekit.registry import REFERENCES, resolve
from edgekit.rounding import round_weights
from edgekit.sites import insert_sites
from edgekit.stages import threads
from edgekit.target import PendingExport, Target
from edgekit.target_choice import check_widths, target_named, usable_targets
from edgekit.template import build_template
from edgekit.types import SCHEMES, Artifact, Cpu, Effort, LayerBits, Progress, Rounding, no_progress


def quantize_observed(
    captured: CapturedModel,
    statistics: Statistics,
    scheme: str,
    *,
    end_bits: int = 8,
    chosen: Mapping[str, LayerBits] | None = None,
    rounding: Rounding = Rounding.GPTQ,
    effort: Effort = Effort.STANDARD,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Progress = no_progress,
) -> QuantizedModel:
    """Fold, equalize and quantize a network with what a calibration observed.

    Args:
        captured: the network with its BatchNorms.
        statistics: of its activations.
        scheme: a name in ``SCHEMES``.
        end_bits: widths of the first and last layers at least (:func:`allocate`).
        chosen: widths of single layers by name.
        rounding: how weights of less than 8 bits are rounded.
        effort: how long learned rounding takes.
        seed: seed of what it learns on.
        checkpoint: file that a student's training is saved to and continued from.
        progress: called as the work advances.
    """
    nearest = quantize_nearest(captured, statistics, scheme, end_bits=end_bits, chosen=chosen)
    return round_weights(nearest, rounding, effort, seed, progress, checkpoint)


def quantize_nearest(
    captured: CapturedModel,
    statistics: Statistics,
    scheme: str,
    *,
    end_bits: int = 8,
    chosen: Mapping[str, LayerBits] | None = None,
) -> QuantizedModel:
    """Do the same with every weight rounded to the nearest code."""
    statistics = with_normalization_prior(captured, statistics)
    statistics = with_input_domain(captured, statistics)
    folded, statistics = fold_batchnorm(captured, statistics)
    bits = allocate(folded.graph.graph, SCHEMES[scheme], end_bits=end_bits, chosen=chosen)
    equal, statistics, lifted = equalize(folded, statistics, bits)
    decisions = {"equalized": dict(lifted)}
    return quantize_model(insert_sites(equal), statistics, SCHEMES[scheme], bits, decisions)


def lower_for(quantized: QuantizedModel, target: Target, cpu: Cpu) -> LoweredModel:
    """Derive what a target executes, its biases corrected on inputs where there are any."""
    with threads(1):  # small operators: threads would wait for one another
        lowered = lower(quantized, target.profile(cpu), target.unsupported(quantized.sited))
    # on noise the share of positions that a clamp lets through means nothing, nor does their error;
    # biases that were learned are those that the learned codes need
    skip = quantized.statistics.altered or quantized.biases
    reference = None if skip else quantized.reference
    return lowered if reference is None else with_measured_bias(lowered, reference)


def export_all(
    quantized: QuantizedModel, recipe: Recipe, directory: Path, progress: Progress
) -> tuple[dict[str, LoweredModel], list[Artifact], dict[str, str]]:
    """Write the artifacts of all targets of a recipe, and the neutral files beside them.

    Returns:
        What each target executes, the artifacts written, and the reasons of those that failed.
    """
    template = build_template(quantized.sited)
    progress("export", 0.3)
    lowered: dict[str, LoweredModel] = {}
    failures: dict[str, str] = {}
    with ExitStack() as stack:
        pending: dict[str, PendingExport] = {}
        for name in sorted(recipe.targets, key=lambda n: target_named(n).executed):
            target = target_named(name)  # engines first: they build while the others are written
            try:
                lowered[name] = lower_for(quantized, target, recipe.cpu)
                pending[name] = target.export(template, lowered[name], directory)
                stack.callback(pending[name].close)
            except (ExportError, UnsupportedError) as error:
                failures[name] = error.message
            progress(f"export {name}", 0.3 + 0.6 * len(lowered) / len(recipe.targets))
        artifacts = _wait(pending, failures, recipe.targets)
    write_neutral_files(template, quantized, directory)
    return lowered, artifacts, failures


def _wait(
    pending: Mapping[str, PendingExport], failures: dict[str, str], order: Sequence[str]
) -> list[Artifact]:
    artifacts = []
    for name in order:
        if name in pending:
            try:
                artifacts.append(pending[name].wait())
            except (ExportError, UnsupportedError) as error:
                failures[name] = error.message
    return artifacts


def write_neutral_files(template: ir.Model, quantized: QuantizedModel, directory: Path) -> None:
    """Write the float reference and the integer codes."""
    from safetensors.torch import save_file

    from edgekit.simulate import code_names

    realize_float = resolve(REFERENCES, "onnx", "reference format")
    reference = directory / "float" / "model.onnx"
    reference.parent.mkdir()
    ir.save(realize_float(template, quantized.sited), reference)
    save_file(code_names(quantized.codes), directory / "quantized.safetensors")


def export(
    quantized: QuantizedModel, directory: Path, *, targets: Sequence[str], cpu: Cpu = Cpu.AVX2
) -> list[Artifact]:
    """Write the artifacts of a quantized model below an existing directory.

    Args:
        quantized: the neutral quantized model.
        directory: where the targets' folders go.
        targets: names of the targets.
        cpu: instruction set that CPU artifacts must be exact on.

    Raises:
        ExportError: a target's own tools reject the graph.
        UnsupportedError: a target does not run the bit widths.
    """
    names = usable_targets(targets, quantized.scheme.name)
    check_widths(quantized.bits, names)
    template = build_template(quantized.sited)
    artifacts = []
    for name in names:
        target = target_named(name)
        pending = target.export(template, lower_for(quantized, target, cpu), directory)
        try:
            artifacts.append(pending.wait())
        finally:
            pending.close()
    return artifacts
