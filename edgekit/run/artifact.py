"""Which artifact of a result runs here, and opening it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit.errors import (
    ConfigError,
    EdgekitError,
    LoadError,
    MissingDependencyError,
    UnsupportedError,
    VerificationError,
)
from edgekit.manifest import Manifest, TargetEntry, verify_files
from edgekit.registry import BUILDERS
from edgekit.runners import open_model
from edgekit.runners.tensors import ArtifactRunner


@dataclass(frozen=True, slots=True)
class OpenArtifact:
    """An open artifact.

    Attributes:
        name: its target.
        runner: what runs it.
        executed: its own runtime runs it, and not ONNX Runtime in its place.
        reason: why that is so.
        manifest: of the result that it belongs to.
    """

    name: str
    runner: ArtifactRunner
    executed: bool
    reason: str | None
    manifest: Manifest

    def infer(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once.

        Raises:
            ConfigError: the feeds do not fit.
            VerificationError: the artifact lacks the network's first output.
        """
        found = self.runner.infer(feeds)
        first = self.manifest.outputs[0].name
        if first not in found:
            raise VerificationError(
                f"target '{self.name}' has the outputs {sorted(found)}, expected '{first}'"
            )
        return found

    def first_output(self, value: np.ndarray) -> np.ndarray:
        """Run a network of one input once and return its first output."""
        feeds = {self.manifest.inputs[0].name: value}
        return self.infer(feeds)[self.manifest.outputs[0].name]

    def fixed_sizes(self) -> tuple[int | None, ...]:
        """Return the sizes of the first input that the open file leaves no choice of."""
        name = self.manifest.inputs[0].name
        if self.executed and self.name in BUILDERS:  # engines are built for the stated sizes
            return self.manifest.inputs[0].shape
        for info in self.runner.inputs:
            if info.name == name:
                return info.shape
        raise VerificationError(f"target '{self.name}' has no input '{name}'")


def open_target(
    folder: Path, manifest: Manifest, name: str | None, threads: int | None
) -> OpenArtifact:
    """Open the named target, or else the first that this machine runs.

    Targets that were executed when the result was made come first. Where no runtime here runs one,
    its ONNX file is simulated by ONNX Runtime, with the reason. The caller closes the runner.

    Raises:
        ConfigError: the result holds no such target.
        LoadError: a file differs from the manifest.
        UnsupportedError: nothing here runs the target, or any.
    """
    named = None if name is None else manifest.target(name)
    entries = [named] if named is not None else _by_preference(manifest)
    reasons: dict[str, str] = {}
    for entry in entries:
        opened = _try(folder, manifest, entry, threads, reasons, simulate=False)
        if opened is not None:
            return opened
    for entry in entries:
        if entry.model.endswith(".onnx"):
            opened = _try(folder, manifest, entry, threads, reasons, simulate=True)
            if opened is not None:
                return opened
    told = "; ".join(f"{target}: {reason}" for target, reason in reasons.items()) or "it has none"
    raise UnsupportedError(
        f"no target of '{folder}' can run here ({told})",
        "install one of the runtimes, for example: pip install 'edgekit-quant[onnxruntime]'",
    )


def _by_preference(manifest: Manifest) -> Sequence[TargetEntry]:
    return sorted(manifest.targets, key=lambda entry: not entry.executed)


def _try(
    folder: Path,
    manifest: Manifest,
    entry: TargetEntry,
    threads: int | None,
    reasons: dict[str, str],
    *,
    simulate: bool,
) -> OpenArtifact | None:
    """Open one target, or leave in ``reasons`` why that does not work."""
    verify_files(folder, entry.files)
    try:
        runner = open_model(entry.name, folder / entry.model, threads=threads, simulate=simulate)
        runner.__enter__()
    except (MissingDependencyError, UnsupportedError, LoadError) as error:
        reasons.setdefault(entry.name, _short(error))
        return None
    reason = None
    if simulate:
        reason = f"{reasons[entry.name]}; its ONNX file ran in ONNX Runtime instead"
    return OpenArtifact(entry.name, runner, not simulate, reason, manifest)


def _short(error: EdgekitError) -> str:
    return error.message.splitlines()[0]


def check_image_input(manifest: Manifest) -> None:
    """Check that the network takes one image.

    Raises:
        UnsupportedError: it has other inputs.
        ConfigError: the result does not say how an image becomes its input.
    """
    spec = manifest.inputs[0]
    if len(manifest.inputs) != 1 or len(spec.shape) != 4:
        shapes = ", ".join(f"{item.name} {list(item.shape)}" for item in manifest.inputs)
        raise UnsupportedError(
            f"the network takes {shapes}, and not one image",
            "give .npz files with one array for each input",
        )
    if manifest.preprocessing is None:
        raise ConfigError(
            "the result does not say how images are preprocessed",
            "quantize again with --preprocessing, or give .npz files of preprocessed inputs",
        )
