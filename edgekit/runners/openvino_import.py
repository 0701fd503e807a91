"""Imports OpenVINO without its usage reports.

Importing ``openvino`` and converting a model each send an event to Intel through the package
``openvino_telemetry``, from threads and processes of their own, unless the user has opted out or
the environment says ``CI=true``. OpenVINO takes a stub where that package is not installed, and so
it does here: a tool that works on private networks reports nothing on its own account.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edgekit.errors import require

_PACKAGE, _REPORTER = "openvino", "openvino_telemetry"


def import_openvino(module: str = _PACKAGE) -> Any:
    """Import ``openvino`` or a part of it.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
    """
    loaded = sys.modules.get(module)
    if loaded is not None:
        return loaded
    with without_reports():
        return require(module, extra="openvino")


def openvino_core() -> Any:
    """Return the one ``Core`` of this process, which lives as long as the process.

    On CPUs with AVX-512 the first model that a ``Core`` compiles gives the thread another stack for
    signals, and takes it away when the ``Core`` goes. Of two the stack of the first may be put back
    when it is gone already: the next Ctrl-C then ends in a segmentation fault (OpenVINO 2026.4).

    Raises:
        MissingDependencyError: OpenVINO is not installed.
    """
    return _core_of(import_openvino())


@functools.cache
def _core_of(openvino: Any) -> Any:
    return openvino.Core()


@contextmanager
def without_reports() -> Iterator[None]:
    """Keep OpenVINO from sending reports meanwhile, also where the user's own import sends them."""
    kept = {name: sys.modules[name] for name in sys.modules if name.split(".")[0] == _REPORTER}
    continuous = os.environ.get("CI")
    os.environ["CI"] = "true"
    if _PACKAGE not in sys.modules:
        for name in kept:
            del sys.modules[name]
        sys.modules[_REPORTER] = None  # type: ignore[assignment] # makes its import fail
    try:
        yield
    finally:
        if sys.modules.get(_REPORTER, kept) is None:
            del sys.modules[_REPORTER]
            sys.modules.update(kept)
        if continuous is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = continuous
