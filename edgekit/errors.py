"""Exceptions and the one gate through which optional packages are imported.

Every failure that a user can cause is an :class:`EdgekitError`: it carries a stable ``code`` for
machines, a message that names what, where, expected and got, and a ``hint`` that says what to do
next. Anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import ClassVar


class EdgekitError(Exception):
    """Base of all errors that are the user's to mend (exit code 2)."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def to_dict(self) -> dict[str, str]:
        """Return the machine-readable form that ``--json`` prints."""
        return {"code": self.code, "message": self.message, "hint": self.hint}


class ConfigError(EdgekitError):
    """An option or a combination of options is invalid."""

    code = "config"


class LoadError(EdgekitError):
    """The model file cannot be read as what it claims to be."""

    code = "load"


class UnsafeFileError(LoadError):
    """Reading the file would run code that it contains."""

    code = "unsafe_file"


class CaptureError(EdgekitError):
    """``torch.export`` cannot capture the network with the given inputs."""

    code = "capture"


class CalibrationError(EdgekitError):
    """Calibration has nothing usable to work with."""

    code = "calibration"


class TrainingError(EdgekitError):
    """Training cannot go on, or has nothing usable to work with."""

    code = "training"


class UnsupportedError(EdgekitError):
    """The request is understood but cannot be honoured by this target or scheme."""

    code = "unsupported"


class ExportError(EdgekitError):
    """A target's exporter or builder failed."""

    code = "export"


class OutputError(EdgekitError):
    """The output location cannot be written."""

    code = "output"


class MissingDependencyError(EdgekitError):
    """An optional package is needed and not installed."""

    code = "missing_dependency"


class VerificationError(EdgekitError):
    """An artifact ran but failed its check (exit code 1)."""

    code = "verification"
    exit_code = 1


DISTRIBUTION = "edgekit-quant"


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional package or say how to install it.

    Args:
        module: dotted import name, such as ``"openvino"``.
        extra: the optional dependency group of this project that brings it.

    Raises:
        MissingDependencyError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise  # the package is there but one of its own imports is broken: not ours to hide
        raise MissingDependencyError(
            f"the Python package '{module}' is not installed",
            f"install it with: pip install '{DISTRIBUTION}[{extra}]'",
        ) from error
    except ImportError as error:  # installed, but a system library is missing (libGL.so.1, libcuda)
        raise MissingDependencyError(
            f"the Python package '{module}' is installed but cannot be imported: {error}",
            "install the system library that it names",
        ) from error
