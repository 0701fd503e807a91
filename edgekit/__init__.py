"""Quantize trained networks for edge runtimes, without data, and check each artifact by running it.

The public functions are imported on first use (PEP 562), so ``import edgekit`` costs nothing and a
device without torch can still open, run and evaluate an artifact.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.artifacts import export as export
    from edgekit.bench import bench as bench
    from edgekit.capture import capture as capture
    from edgekit.deploy import deploy as deploy
    from edgekit.doctor import doctor as doctor
    from edgekit.evaluate import evaluate as evaluate
    from edgekit.inspect_model import inspect_model as inspect_model
    from edgekit.inspect_result import inspect_result as inspect_result
    from edgekit.loading import load as load
    from edgekit.pipeline import quantize as quantize
    from edgekit.regress import regress as regress
    from edgekit.run import run as run
    from edgekit.runners import open_artifact as open_artifact
    from edgekit.synthesize import synthesize as synthesize
    from edgekit.verify import verify as verify

    __version__: str

# Public name -> the module that defines it.
_EXPORTS = {
    "bench": "edgekit.bench",
    "capture": "edgekit.capture",
    "deploy": "edgekit.deploy",
    "doctor": "edgekit.doctor",
    "evaluate": "edgekit.evaluate",
    "export": "edgekit.artifacts",
    "inspect_model": "edgekit.inspect_model",
    "inspect_result": "edgekit.inspect_result",
    "load": "edgekit.loading",
    "open_artifact": "edgekit.runners",
    "quantize": "edgekit.pipeline",
    "regress": "edgekit.regress",
    "run": "edgekit.run",
    "synthesize": "edgekit.synthesize",
    "verify": "edgekit.verify",
}

__all__ = [
    "__version__",
    "bench",
    "capture",
    "deploy",
    "doctor",
    "evaluate",
    "export",
    "inspect_model",
    "inspect_result",
    "load",
    "open_artifact",
    "quantize",
    "regress",
    "run",
    "synthesize",
    "verify",
]


class _Package(ModuleType):
    """This package, on which a public function keeps its name beside a module of that name."""

    def __setattr__(self, name: str, value: object) -> None:
        # The import system binds every imported submodule on its package. Without this line,
        # `edgekit.verify` would be the function or the module depending on who imported first.
        if name in _EXPORTS and isinstance(value, ModuleType):
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    value: object
    if name in _EXPORTS:
        value = getattr(importlib.import_module(_EXPORTS[name]), name)
    elif name == "__version__":
        from importlib.metadata import version  # slow to import, and rarely needed

        from edgekit.errors import DISTRIBUTION

        value = version(DISTRIBUTION)
    else:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, those not yet imported included."""
    return sorted({*globals(), *__all__})
