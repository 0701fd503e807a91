"""An ONNX Runtime session with inputs and outputs that stay in the memory of its device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.runners.onnxruntime import import_onnxruntime

_NO_WAIT = "disable_synchronize_execution_providers"


@dataclass(frozen=True, slots=True)
class DeviceBinding:
    """A session that is ready to run; see :func:`bind_on_device`."""

    session: Any
    binding: Any
    sent: Mapping[str, tuple[Any, np.ndarray]]  # value on the device, array on the host
    received: Mapping[str, Any]
    no_wait: Any

    def run(self) -> None:
        """Run once and wait; nothing is copied."""
        self.session.run_with_iobinding(self.binding)
        self.binding.synchronize_outputs()

    def run_with_copies(self) -> list[np.ndarray]:
        """Copy the inputs to the device, run once, and copy the outputs back."""
        for value, array in self.sent.values():
            value.update_inplace(array)
        self.session.run_with_iobinding(self.binding)
        return [value.numpy() for value in self.received.values()]

    def enqueue(self) -> None:
        """Start a run and return without waiting, as far as the provider knows how."""
        self.session.run_with_iobinding(self.binding, self.no_wait)


def bind_on_device(
    session: Any, feeds: Mapping[str, np.ndarray], results: Mapping[str, np.ndarray], device: str
) -> DeviceBinding:
    """Allocate inputs and outputs on a device once, at addresses that a CUDA graph can rely on.

    Args:
        session: an open session.
        feeds: input name to array.
        results: output name to an array of the size and type that the outputs will have.
        device: ONNX Runtime's name of it, such as ``"cuda"``.
    """
    runtime = import_onnxruntime()
    binding = session.io_binding()
    sent = {}
    for name, array in feeds.items():
        value = runtime.OrtValue.ortvalue_from_numpy(array, device, 0)
        binding.bind_ortvalue_input(name, value)
        sent[name] = (value, array)
    received = {}
    for name, array in results.items():
        value = runtime.OrtValue.ortvalue_from_numpy(np.zeros_like(array), device, 0)
        binding.bind_ortvalue_output(name, value)
        received[name] = value
    no_wait = runtime.RunOptions()
    no_wait.add_run_config_entry(_NO_WAIT, "1")
    return DeviceBinding(session, binding, sent, received, no_wait)
