"""The one place that knows the order of the stages."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from edgekit.architecture import confirmed_arch
from edgekit.artifacts import export_all, quantize_observed
from edgekit.budget import DEFAULT_BUDGET, Budget, check_budget
from edgekit.calibrate import calibrate, check_calibration, choose, samples_of
from edgekit.capture import CapturedModel
from edgekit.environment import usable_cores
from edgekit.errors import ConfigError, VerificationError
from edgekit.loading import LoadedModel, load
from edgekit.lowering import LoweredModel
from edgekit.mixed_plot import plot_mixed
from edgekit.mixed_search import MixedChoice, search_mixed, size_shortfalls
from edgekit.observe import with_notes
from edgekit.options import InputOption
from edgekit.output import AtomicDirectory
from edgekit.quant.statistics import Statistics
from edgekit.quantized import QuantizedModel
from edgekit.recipe import Recipe, check_end_bits, write_recipe
from edgekit.registry import SYNTHESIZERS
from edgekit.report import Report, write_result_files
from edgekit.rounding import choose_rounding
from edgekit.stages import Stages, compute_device, on_device, threads
from edgekit.target_choice import check_bits, target_named, usable_targets
from edgekit.types import (
    Artifact,
    Cpu,
    Effort,
    LayerBits,
    Preprocessing,
    Progress,
    Rounding,
    Task,
    no_progress,
)
from edgekit.verify import (
    TargetVerification,
    VerificationInputs,
    require_agreement,
    verification_inputs,
    verify,
)
from edgekit.verify_sizes import verify_other_size


def resolve_recipe(
    loaded: LoadedModel,
    *,
    arch: str | None,
    scheme: str,
    targets: Sequence[str] | None,
    calibration: str,
    effort: Effort,
    cpu: Cpu,
    seed: int,
    end_bits: int = 8,
    bits: Mapping[str, LayerBits] | None = None,
    rounding: Rounding = Rounding.AUTO,
) -> Recipe:
    """Turn options into a complete configuration.

    Raises:
        ConfigError: an unknown name.
        UnsupportedError: a target that the user named does not run the scheme.
        MissingDependencyError: a target that the user named needs a runtime that is not here.
    """
    from edgekit import __version__

    return Recipe(
        model_sha256=loaded.sha256,
        arch=arch,
        inputs=loaded.inputs,
        preprocessing=loaded.preprocessing,
        task=loaded.task,
        scheme=scheme,
        targets=usable_targets(targets, scheme),
        calibration=calibration,
        effort=effort,
        cpu=cpu,
        samples=samples_of(calibration),
        seed=seed,
        threads=usable_cores(),
        edgekit=__version__,
        end_bits=end_bits,
        bits=dict(bits or {}),
        rounding=choose_rounding(rounding, effort, calibration),
    )


def quantize(
    model: str | Path,
    *,
    out: str | Path,
    arch: str | None = None,
    inputs: Sequence[InputOption] = (),
    preprocessing: Preprocessing | None = None,
    task: Task | None = None,
    scheme: str = "w8a8",
    targets: Sequence[str] | None = None,
    calibration: str = "auto",
    effort: Effort = Effort.STANDARD,
    cpu: Cpu = Cpu.AVX2,
    recipe: Recipe | None = None,
    min_agreement: float | None = None,
    seed: int = 0,
    device: str = "auto",
    checkpoint: str | Path | None = None,
    trust_pickle: bool = False,
    weights: str | None = None,
    end_bits: int = 8,
    bits: Mapping[str, LayerBits] | None = None,
    rounding: Rounding = Rounding.AUTO,
    budget: Budget | None = None,
    progress: Progress = no_progress,
) -> Report:
    """Quantize a network without data, export it, run every artifact and write the result.

    Args:
        model: file of weights (see :func:`edgekit.load`).
        out: directory to create; it must not exist.
        arch: architecture, where the file does not name it.
        inputs: input shapes, where neither file nor zoo states them.
        preprocessing: how an image becomes the first input.
        task: meaning of the first output.
        scheme: quantization scheme.
        targets: runtimes; all that run the scheme and can be written here if ``None``.
        calibration: ``auto``, an engine (``renorm``, ``distill``, ``clusterq``), a file of inputs
            (``FILE.npz``), or a control: ``noise``, ``images:DIR``.
        effort: time budget.
        cpu: instruction set that CPU artifacts must be exact on.
        recipe: repeat this configuration; all options but ``out``, ``min_agreement`` and
            ``device`` then come from it.
        min_agreement: fail below this agreement with the float network, percent.
        seed: seed of everything random.
        device: where calibration runs: ``auto``, ``cpu`` or ``cuda``.
        checkpoint: file that a long calibration is saved to, and continued from if it exists.
        trust_pickle: open also a file that runs code when it is opened.
        weights: which of several sets of weights in the file.
        end_bits: bits of the first and last layers, where the scheme has fewer than 8.
        bits: bits of single layers by name, before scheme and ``end_bits``.
        rounding: how weights of less than 8 bits are rounded.
        budget: what a ``mixed`` allocation may cost; a point of accuracy if ``None``.
        progress: called as the work advances.

    Returns:
        The report. Artifacts that failed verification are marked and their files removed;
        ``report.failures`` lists them.

    Raises:
        EdgekitError: the user's error; nothing is left at ``out``.
    """
    place = compute_device(device)
    if recipe is None:  # a bad option must cost no work
        check_calibration(calibration)
        usable_targets(targets, scheme)
        check_end_bits(scheme, end_bits)
        check_budget(scheme, budget)
    if min_agreement is not None and not 0 <= min_agreement <= 100:
        raise ConfigError(f"--min-agreement {min_agreement:g}: a percentage from 0 to 100")
    stages = Stages(progress, {})
    started = time.perf_counter()
    with AtomicDirectory(Path(out)) as directory:
        with stages.stage("load"):
            loaded = _load(model, recipe, arch, inputs, preprocessing, task, trust_pickle, weights)
            configuration = recipe or resolve_recipe(
                loaded,
                arch=arch,
                scheme=scheme,
                targets=targets,
                calibration=calibration,
                effort=effort,
                cpu=cpu,
                seed=seed,
                end_bits=end_bits,
                bits=bits,
                rounding=rounding,
            )
            usable_targets(configuration.targets, configuration.scheme)
        with threads(configuration.threads):
            with stages.stage("capture"):
                captured = loaded.capture()
                check_bits(captured.graph.graph, configuration)
            with stages.stage("calibrate") as inner:
                name, reason = choose(captured, configuration.calibration, configuration.effort)
                if recipe is None:
                    configuration = replace(
                        configuration, calibration=name, samples=samples_of(name)
                    )
                with on_device(captured, place), _teacher(loaded, name, place) as teacher:
                    statistics = calibrate(
                        captured,
                        name,
                        samples=configuration.samples,
                        seed=configuration.seed,
                        teacher=teacher,
                        checkpoint=None if checkpoint is None else Path(checkpoint),
                        progress=inner,
                    )
                statistics = with_notes(statistics, f"calibration {name} ({reason})")
            choice = None
            if recipe is None and configuration.scheme == "mixed":
                choice = _allocate(captured, statistics, configuration, budget, stages)
                configuration = replace(configuration, bits=choice.bits)
                statistics = with_notes(statistics, choice.summary)
            with stages.stage("quantize") as inner:
                quantized = quantize_observed(
                    captured,
                    statistics,
                    configuration.scheme,
                    end_bits=configuration.end_bits,
                    chosen=configuration.bits,
                    rounding=configuration.rounding,
                    effort=configuration.effort,
                    seed=configuration.seed,
                    checkpoint=None if checkpoint is None else Path(f"{checkpoint}.student"),
                    progress=inner,
                )
            with stages.stage("export") as inner:
                lowered, artifacts, failures = export_all(
                    quantized, configuration, directory.path, inner
                )
            with stages.stage("verify") as inner:
                checked = _verify_all(
                    captured, lowered, artifacts, configuration, directory.path, inner
                )
        shortfalls = list(require_agreement(checked, min_agreement))
        if choice is not None:
            shortfalls += size_shortfalls(choice, directory.path, artifacts, configuration)
            quantized = _with_choice(quantized, choice)
            plot_mixed(choice, directory.path)
        failures.update({r.target: str(r.reason) for r in checked if not r.passed})
        report = Report.build(
            model=Path(model),
            loaded=loaded,
            recipe=configuration,
            captured=captured,
            quantized=quantized,
            lowered=lowered,
            artifacts=artifacts,
            verifications=checked,
            failures=failures,
            shortfalls=shortfalls,
            stage_seconds={**stages.seconds, "total": round(time.perf_counter() - started, 3)},
        )
        for name in failures:
            shutil.rmtree(directory.path / name, ignore_errors=True)
        write_recipe(configuration, directory.path)
        write_result_files(report, directory.path)
        directory.commit()
    progress("done", 1.0)
    return report


def _allocate(
    captured: CapturedModel,
    statistics: Statistics,
    recipe: Recipe,
    budget: Budget | None,
    stages: Stages,
) -> MixedChoice:
    with stages.stage("allocate") as inner:
        return search_mixed(captured, statistics, recipe, budget or DEFAULT_BUDGET, inner)


def _with_choice(quantized: QuantizedModel, choice: MixedChoice) -> QuantizedModel:
    return replace(quantized, decisions={**quantized.decisions, "mixed": choice.to_dict()})


def _load(
    model: str | Path,
    recipe: Recipe | None,
    arch: str | None,
    inputs: Sequence[InputOption],
    preprocessing: Preprocessing | None,
    task: Task | None,
    trust_pickle: bool,
    weights: str | None,
) -> LoadedModel:
    if recipe is None:
        return load(
            model,
            arch=arch,
            inputs=inputs,
            preprocessing=preprocessing,
            task=task,
            trust_pickle=trust_pickle,
            weights=weights,
        )
    options = [
        InputOption(s.name, s.shape, s.dtype, s.variable_axes, s.multiple) for s in recipe.inputs
    ]
    loaded = load(
        model,
        arch=confirmed_arch(recipe.arch, arch),
        inputs=options,
        preprocessing=recipe.preprocessing,
        task=recipe.task,
        trust_pickle=trust_pickle,
        weights=weights,
    )
    if recipe.model_sha256 not in (None, loaded.sha256):
        note = "the recipe was made for another model file: the result's bytes will differ"
        return replace(loaded, notes=(*loaded.notes, note))
    return loaded


@contextmanager
def _teacher(
    loaded: LoadedModel, calibration: str, place: torch.device
) -> Iterator[CapturedModel | None]:
    """Give the classifier that a network keeps beside its outputs to what makes inputs for it."""
    found = loaded.capture_teacher() if calibration in SYNTHESIZERS else None
    if found is None:
        yield None
        return
    with on_device(found, place):
        yield found


def _verify_all(
    captured: CapturedModel,
    lowered: Mapping[str, LoweredModel],
    artifacts: Sequence[Artifact],
    recipe: Recipe,
    directory: Path,
    inner: Progress,
) -> list[TargetVerification]:
    inputs: VerificationInputs = verification_inputs(captured, recipe.seed)
    done: list[str] = []

    def on_target(name: str) -> None:
        done.append(name)
        inner(f"verify {name}", len(done) / (len(artifacts) + 1))

    targets = [target_named(name) for name in recipe.targets]
    executed = {target.name: target.executed for target in targets}
    why = {t.name: t.why_simulated for t in targets if t.why_simulated is not None}
    results = verify(
        artifacts,
        lowered,
        directory,
        executed=executed,
        why_simulated=why,
        inputs=inputs,
        threads=recipe.threads,
        on_target=on_target,
    )
    return verify_other_size(
        results,
        captured,
        artifacts,
        lowered,
        directory,
        executed=executed,
        why_simulated=why,
        seed=recipe.seed,
        threads=recipe.threads,
    )


def raise_for_failures(report: Report) -> None:
    """Raise if an artifact failed its check or an agreement is too low.

    Raises:
        VerificationError: the command must end with exit code 1.
    """
    problems = [f"{name}: {reason}" for name, reason in report.failures.items()]
    problems += report.shortfalls
    if problems:
        raise VerificationError("; ".join(problems), "the other targets' files are kept")
