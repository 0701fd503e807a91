"""State of a long run on disk: written atomically, refused for another network or setting."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from edgekit.capture import CapturedModel
from edgekit.errors import CalibrationError, OutputError
from edgekit.files.torch_save import READER_ERRORS

_EVERY_SECONDS = 20.0  # what a kill may cost; writing takes a fraction of a second


@dataclass
class Checkpoint:
    """Saves and restores the state of one run.

    Attributes:
        path: the file; it may not exist yet.
        identity: what the run depends on; :func:`run_identity` makes it.
        elsewhere: how the user names another file.
    """

    path: Path
    identity: Mapping[str, str]
    elsewhere: str = "name another --checkpoint file"
    _saved: float = field(default_factory=time.monotonic)

    def load(self) -> dict[str, Any] | None:
        """Return the saved state, or ``None`` where there is no file yet.

        Raises:
            CalibrationError: the file is damaged, or belongs to another network or setting.
        """
        if not self.path.exists():
            return None
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
        except READER_ERRORS as error:
            reason = error.strerror if isinstance(error, OSError) else None
            raise self._unreadable(reason or "it is damaged") from error
        identity, state = _parts(saved)
        if identity is None or state is None:
            raise self._unreadable("it holds something else")
        for key, value in self.identity.items():
            if identity.get(key) != value:
                raise CalibrationError(
                    f"the checkpoint '{self.path}' was made with another {key} "
                    f"({identity.get(key)}, now {value})",
                    f"continue with the same model and options, or {self.elsewhere}",
                )
        return state

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the state; after a crash at any point the old or the new one is there.

        Raises:
            OutputError: the file cannot be written.
        """
        beside = self.path.with_name(f".{self.path.name}.partial")
        try:
            with beside.open("wb") as file:
                torch.save({"identity": dict(self.identity), "state": dict(state)}, file)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self.path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise OutputError(
                f"the checkpoint '{self.path}' cannot be written: {error.strerror or error}",
                f"make room on the disk, or {self.elsewhere}",
            ) from error
        self._saved = time.monotonic()

    def due(self) -> bool:
        """Whether the last save is long enough ago."""
        return time.monotonic() - self._saved > _EVERY_SECONDS

    def remove(self) -> None:
        """Delete the file: the run is done."""
        self.path.unlink(missing_ok=True)

    def _unreadable(self, reason: str) -> CalibrationError:
        return CalibrationError(
            f"the checkpoint '{self.path}' cannot be read: {reason}",
            f"{self.elsewhere} to start from the beginning",
        )


def _parts(saved: object) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return identity and state, ``None`` where the file has none."""
    parts = saved if isinstance(saved, dict) else {}
    identity, state = parts.get("identity"), parts.get("state")
    return (
        identity if isinstance(identity, dict) else None,
        state if isinstance(state, dict) else None,
    )


def run_identity(model: CapturedModel, options: object, device: torch.device) -> dict[str, str]:
    """Return what a run's result depends on, each as a short text.

    Args:
        model: the network; graph and parameters count.
        options: the engine's options, a frozen dataclass with a complete ``repr``.
        device: where the run takes place.
    """
    digest = hashlib.sha256(model.graph.code.encode())
    for name, tensor in sorted(model.graph.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return {
        "network": digest.hexdigest()[:16],
        "options": repr(options),
        "device": device.type,
        "thread count": str(torch.get_num_threads()),
        "torch version": str(torch.__version__),  # a class of its own, not loadable as such
    }
