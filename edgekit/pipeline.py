"""The one place that knows the order of the stages."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import onnx_ir as ir
import torch

from edgekit.architecture import confirmed_arch
from edgekit.calibrate import calibration_source, check_statistics, resolve_calibration
from edgekit.capture import CapturedModel, capture
from edgekit.environment import usable_cores
from edgekit.errors import ConfigError, ExportError, UnsupportedError, VerificationError
from edgekit.loading import LoadedModel, load
from edgekit.lowering import LoweredModel
from edgekit.options import InputOption
from edgekit.output import AtomicDirectory
from edgekit.passes.equalize import equalize
from edgekit.passes.fold_batchnorm import fold_batchnorm
from edgekit.passes.input_domain import with_input_domain
from edgekit.passes.normalization_prior import with_normalization_prior
from edgekit.quantized import QuantizedModel, lower, quantize_model
from edgekit.recipe import Recipe, write_recipe
from edgekit.registry import REFERENCES, TARGETS, resolve
from edgekit.report import Report, write_result_files
from edgekit.sites import insert_sites
from edgekit.target import PendingExport, Target
from edgekit.template import build_template
from edgekit.types import SCHEMES, Artifact, Cpu, Effort, Preprocessing, Progress, Task, no_progress
from edgekit.verify import (
    TargetVerification,
    VerificationInputs,
    require_agreement,
    verification_inputs,
    verify,
)

SAMPLES = 64


@dataclass(frozen=True)
class Stages:
    """Timer of the stages, and the sink of their progress. ``weights`` add up to one."""

    progress: Progress
    seconds: dict[str, float]

    _PLAN: ClassVar[Mapping[str, tuple[float, float]]] = {
        "load": (0.00, 0.03),
        "capture": (0.03, 0.10),
        "calibrate": (0.10, 0.45),
        "quantize": (0.45, 0.55),
        "export": (0.55, 0.75),
        "verify": (0.75, 1.00),
    }

    @contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        """Time a stage; the yielded callable takes the stage's own fraction."""
        begin, end = self._PLAN[name]
        self.progress(name, begin)
        started = time.perf_counter()

        def inner(text: str, fraction: float) -> None:
            self.progress(text, begin + (end - begin) * min(max(fraction, 0.0), 1.0))

        yield inner
        self.seconds[name] = round(time.perf_counter() - started, 3)


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
) -> Recipe:
    """Turn options into a complete configuration.

    Raises:
        ConfigError: an unknown name.
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
        targets=usable_targets(targets),
        calibration=resolve_calibration(calibration, effort),
        effort=effort,
        cpu=cpu,
        samples=SAMPLES,
        seed=seed,
        threads=usable_cores(),
        edgekit=__version__,
    )


def usable_targets(names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the targets to write: those named, or all that can be written here.

    Raises:
        ConfigError: an unknown target, or a target named twice.
        MissingDependencyError: the runtime of a named target is not installed.
    """
    if names is None:
        return tuple(name for name in TARGETS if _target(name).missing() is None)
    if len(set(names)) != len(names) or not names:
        raise ConfigError(f"--targets {','.join(names)}: name each target once")
    for name in names:
        missing = _target(name).missing()
        if missing is not None:
            raise missing
    return tuple(names)


def _target(name: str) -> Target:
    target: Target = resolve(TARGETS, name, "target")()
    return target


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
    effort: Effort = Effort.INSTANT,
    cpu: Cpu = Cpu.AVX2,
    recipe: Recipe | None = None,
    min_agreement: float | None = None,
    seed: int = 0,
    device: str = "auto",
    trust_pickle: bool = False,
    weights: str | None = None,
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
        targets: runtimes; all that can be written here if ``None``.
        calibration: ``auto``, ``renorm``, or a control: ``noise``, ``images:DIR``.
        effort: time budget.
        cpu: instruction set that CPU artifacts must be exact on.
        recipe: repeat this configuration; all options but ``out``, ``min_agreement`` and
            ``device`` then come from it.
        min_agreement: fail below this agreement with the float network, percent.
        seed: seed of everything random.
        device: where calibration runs: ``auto``, ``cpu`` or ``cuda``.
        trust_pickle: open also a file that runs code when it is opened.
        weights: which of several sets of weights in the file.
        progress: called as the work advances.

    Returns:
        The report. Artifacts that failed verification are marked and their files removed;
        ``report.failures`` lists them.

    Raises:
        EdgekitError: the user's error; nothing is left at ``out``.
    """
    place = _device(device)
    if recipe is None:  # a bad option must cost no work
        resolve_calibration(calibration, effort)
        usable_targets(targets)
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
            )
            usable_targets(configuration.targets)
        with _threads(configuration.threads):
            captured, quantized = _quantize(loaded, configuration, place, stages)
            lowered, artifacts, failures = _export_all(
                quantized, configuration, directory.path, stages
            )
            with stages.stage("verify") as inner:
                checked = _verify_all(
                    captured, lowered, artifacts, configuration, directory.path, inner
                )
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
            shortfalls=require_agreement(checked, min_agreement),
            stage_seconds={**stages.seconds, "total": round(time.perf_counter() - started, 3)},
        )
        for name in failures:
            shutil.rmtree(directory.path / name, ignore_errors=True)
        write_recipe(configuration, directory.path)
        write_result_files(report, directory.path)
        directory.commit()
    progress("done", 1.0)
    return report


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
    options = [InputOption(s.name, s.shape, s.dtype, s.variable_axes) for s in recipe.inputs]
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


def _quantize(
    loaded: LoadedModel, recipe: Recipe, device: torch.device, stages: Stages
) -> tuple[CapturedModel, QuantizedModel]:
    with stages.stage("capture"):
        captured = capture(
            loaded.module,
            loaded.inputs,
            task=loaded.task,
            preprocessing=loaded.preprocessing,
            num_classes=loaded.num_classes,
        )
    with stages.stage("calibrate") as inner:
        source = calibration_source(recipe.calibration, recipe.samples, recipe.seed)
        with _on_device(captured, device):
            statistics = source.observe(captured, progress=inner)
        check_statistics(statistics)
    with stages.stage("quantize"):
        statistics = with_normalization_prior(captured, statistics)
        statistics = with_input_domain(captured, statistics)
        folded, statistics = fold_batchnorm(captured, statistics)
        equal, statistics, lifted = equalize(folded, statistics)
        quantized = quantize_model(
            insert_sites(equal), statistics, SCHEMES[recipe.scheme], {"equalized": dict(lifted)}
        )
    return captured, quantized


def _export_all(
    quantized: QuantizedModel, recipe: Recipe, directory: Path, stages: Stages
) -> tuple[dict[str, LoweredModel], list[Artifact], dict[str, str]]:
    with stages.stage("export") as inner:
        template = build_template(quantized.sited)
        inner("export", 0.6)
        lowered: dict[str, LoweredModel] = {}
        failures: dict[str, str] = {}
        with ExitStack() as stack:
            pending: dict[str, PendingExport] = {}
            for name in sorted(recipe.targets, key=lambda n: _target(n).executed):
                target = _target(name)  # engines first: they build while the others are written
                with _threads(1):  # small operators: threads would wait for one another
                    lowered[name] = lower(
                        quantized, target.profile(recipe.cpu), target.unsupported(quantized.sited)
                    )
                try:
                    pending[name] = target.export(template, lowered[name], directory)
                    stack.callback(pending[name].close)
                except (ExportError, UnsupportedError) as error:
                    failures[name] = error.message
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
    """
    template = build_template(quantized.sited)
    artifacts = []
    for name in usable_targets(targets):
        target = _target(name)
        lowered = lower(quantized, target.profile(cpu), target.unsupported(quantized.sited))
        pending = target.export(template, lowered, directory)
        try:
            artifacts.append(pending.wait())
        finally:
            pending.close()
    return artifacts


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

    return verify(
        artifacts,
        lowered,
        directory,
        executed={name: _target(name).executed for name in recipe.targets},
        inputs=inputs,
        threads=recipe.threads,
        on_target=on_target,
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


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device {name}: auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device", "use --device cpu")
    # auto: an instant engine is done before a GPU has started
    return torch.device("cuda" if name == "cuda" else "cpu")


@contextmanager
def _on_device(model: CapturedModel, device: torch.device) -> Iterator[None]:
    model.graph.to(device)
    try:
        yield
    finally:
        model.graph.to("cpu")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
