"""Runs OpenVINO IR (or ONNX) files on an Intel GPU, for benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from edgekit.errors import UnsupportedError
from edgekit.runners.openvino import OpenVinoRunner
from edgekit.runners.openvino_import import openvino_core
from edgekit.runners.run_options import RunOptions, Setup


class OpenVinoGpuRunner(OpenVinoRunner):
    """A model file compiled for the first Intel GPU; an inference copies its inputs and outputs.

    Args:
        model_path: the ``.xml`` (its ``.bin`` beside it) or an ONNX file.
        threads: accepted like every runner's; a GPU has no use for it.
    """

    device: ClassVar[str] = "GPU"

    def __init__(self, model_path: Path, *, threads: int | None = None) -> None:
        del threads
        super().__init__(model_path)
        self._options = RunOptions()

    def tune(self, options: RunOptions) -> None:
        """Take the folder for compiled kernels.

        Raises:
            UnsupportedError: without copies it does not run here.
        """
        if not options.copies:
            raise UnsupportedError(
                "OpenVINO's GPU is timed with its copies only", "leave out --no-copies"
            )
        self._options = options

    @property
    def setup(self) -> Setup:
        """The GPU, and what was passed to OpenVINO."""
        options = {key: str(value) for key, value in self._device_config().items()}
        return Setup("intel gpu", copies=True, options=options)

    def device_times(self, runs: int) -> None:
        """Return nothing: OpenVINO has no events."""
        del runs

    def __enter__(self) -> OpenVinoGpuRunner:
        seen = list(openvino_core().available_devices)
        # One GPU is called "GPU", several "GPU.0" and so on.
        if not any(name.split(".")[0] == self.device for name in seen):
            raise UnsupportedError(
                f"OpenVINO sees no Intel GPU, only {', '.join(seen) or 'no device'}",
                "install the OpenCL driver of the Intel GPU (intel-opencl-icd)",
            )
        super().__enter__()
        return self

    def _device_config(self) -> dict[str, Any]:
        cache = self._options.cache
        return {} if cache is None else {"CACHE_DIR": str(cache / "openvino")}
