"""Runs artifacts by their own runtimes. No torch: this is the part that works on a device."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, cast

from edgekit import registry
from edgekit.errors import UnsupportedError
from edgekit.manifest import read_manifest, verify_files
from edgekit.runners.run_options import RunOptions, TunableRunner
from edgekit.runners.tensors import ArtifactRunner


class _RunnerFactory(Protocol):
    def __call__(self, model_path: Path, *, threads: int | None = None) -> ArtifactRunner: ...


def open_model(
    target: str,
    model_path: Path,
    *,
    threads: int | None = None,
    simulate: bool = False,
    options: RunOptions | None = None,
) -> ArtifactRunner:
    """Return the runner of a model file; it opens the file when it is entered.

    Args:
        target: key of the target, or of a variant, in the registry.
        model_path: the file that the target's runner opens.
        threads: threads of the runtime; its own choice if ``None``.
        simulate: run the ONNX file in ONNX Runtime instead, with Q/DQ as float arithmetic.
        options: for runners that know more choices; others have no use for them.

    Raises:
        ConfigError: there is no such target.
        UnsupportedError: no runtime executes the target's artifacts.
    """
    if simulate:
        from edgekit.runners.onnxruntime import OnnxRuntimeRunner

        return OnnxRuntimeRunner(model_path, threads=threads, disable_quant_qdq=True)
    if target in registry.TARGETS and target not in registry.RUNNERS:
        raise UnsupportedError(
            f"no runtime executes artifacts of target '{target}': they are simulated",
            "open the file with simulate=True: ONNX Runtime then computes it in float",
        )
    known = {**registry.RUNNERS, **registry.VARIANTS}
    factory = cast("_RunnerFactory", registry.resolve(known, target, "target"))
    runner = factory(model_path, threads=threads)
    if options is not None and isinstance(runner, TunableRunner):
        runner.tune(options)
    return runner


def open_artifact(result_dir: Path, target: str, *, threads: int | None = None) -> ArtifactRunner:
    """Return the runner of one target of a result directory, after checking its files.

    Example:
        >>> with open_artifact(Path("out"), "onnxruntime") as runner:  # doctest: +SKIP
        ...     logits = runner.infer({"image": image})["logits"]

    Args:
        result_dir: what ``edgekit quantize --out`` wrote.
        target: name of a target in it.
        threads: threads of the runtime; its own choice if ``None``.

    Raises:
        LoadError: not a result directory, or a file differs from the manifest.
        ConfigError: the result holds no such target.
        UnsupportedError: no runtime executes the target's artifacts.
    """
    manifest = read_manifest(result_dir)
    entry = manifest.target(target)
    verify_files(result_dir, entry.files)
    return open_model(target, result_dir / entry.model, threads=threads)
