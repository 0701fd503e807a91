"""Builds a TensorRT engine on the machine that is to run it: part of the device part."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from edgekit.errors import EdgekitError, MissingDependencyError, OutputError
from edgekit.runners.gpus import list_gpus
from edgekit.types import InputSpec

from ._tensorrt_builder import (
    COMPUTE_CAPABILITIES,
    BuildOptions,
    BuiltEngine,
    find_builder,
    probe_builders,
)


def build_here(
    onnx_path: Path,
    out: Path,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    timing_cache: Path | None = None,
) -> BuiltEngine:
    """Build the engine of this machine's GPU from an ONNX file.

    Args:
        onnx_path: the QDQ graph in TensorRT's form.
        out: the engine file to write. One of TensorRT for RTX runs on one compute capability and
            says so in its name: ``x.plan`` becomes ``x.rtx.sm86.plan``.
        shapes: sizes of inputs with dynamic axes, by name.
        timing_cache: read before and written after the build by standard TensorRT.

    Raises:
        MissingDependencyError: no builder works here.
        ExportError: the parser rejects the file, or the builder fails.
        OutputError: the engine cannot be written.
    """
    builder = find_builder()
    if builder is None:
        raise _no_builder()
    inputs = [InputSpec(name, shape) for name, shape in shapes.items()]
    capability = _capability() if builder.kind == "rtx" else None
    try:
        with tempfile.TemporaryDirectory(prefix=".edgekit-", dir=out.parent) as folder:
            report = builder.build(
                onnx_path,
                Path(folder),
                inputs,
                compute_capabilities=(capability,) if capability else (),
                options=BuildOptions(timing_cache=timing_cache),
            )
            (engine,) = report.engines
            name = f"{out.stem}.rtx.{capability.lower()}.plan" if capability else out.name
            return replace(engine, path=engine.path.replace(out.with_name(name)))
    except OSError as error:
        raise OutputError(
            f"the engine '{out}' cannot be written: {error.strerror or error}",
            "free space there, or choose another place",
        ) from error


def _capability() -> str:
    """Return the compute capability to build for: of the first GPU, or the oldest usual one."""
    try:
        return f"SM{list_gpus()[0].compute_capability}"
    except EdgekitError:  # no GPU, no driver: an engine for another machine
        return COMPUTE_CAPABILITIES[0]


def _no_builder() -> MissingDependencyError:
    probes = probe_builders()
    if not probes:
        return MissingDependencyError(
            "no TensorRT is installed for this Python",
            "on a Jetson: sudo apt-get install python3-libnvinfer; a virtual environment sees it "
            "if made with --system-site-packages",
        )
    reasons = "; ".join(f"{probe.name}: {probe.reason}" for probe in probes)
    return MissingDependencyError(
        f"no TensorRT builder works here: {reasons}",
        "in a container, start it with --runtime nvidia; else see: edgekit doctor",
    )
