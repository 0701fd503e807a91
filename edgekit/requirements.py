"""The optional packages of edgekit, as its own metadata lists them, and whether they fit."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from edgekit.errors import DISTRIBUTION

_REQUIREMENT = re.compile(
    r"(?P<name>[\w.-]+)(?P<bounds>[<>=!~\d.,]*)\s*;.*\bextra == .(?P<extra>[\w-]+)"
)
_BOUND = re.compile(r"(?P<sign><|>=)(?P<version>[\d.]+)")
_NOT_FOR_USERS = ("all", "test")


@dataclass(frozen=True, slots=True)
class Package:
    """An optional package: the extra that brings it, its bounds, and what is installed."""

    name: str
    extra: str
    bounds: str
    installed: str | None

    @property
    def fits(self) -> bool | None:
        """Whether the installed version is inside the bounds; ``None`` if there is none."""
        return None if self.installed is None else within(self.installed, self.bounds)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "name": self.name,
            "extra": self.extra,
            "bounds": self.bounds,
            "installed": self.installed,
            "fits": self.fits,
        }


def optional_packages() -> list[Package]:
    """Return the packages of every extra, in the order of the metadata."""
    return parse_requirements(requires(DISTRIBUTION) or ())


def parse_requirements(lines: Iterable[str]) -> list[Package]:
    """Read ``Requires-Dist`` lines such as ``onnx<1.24,>=1.20; extra == "torch"``."""
    found = []
    for line in lines:
        match = _REQUIREMENT.match(line)
        if match is None or match["extra"] in _NOT_FOR_USERS:
            continue
        bounds = ",".join(sorted(match["bounds"].split(","), reverse=True))
        found.append(Package(match["name"], match["extra"], bounds, _installed(match["name"])))
    return found


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def within(installed: str, bounds: str) -> bool:
    """Whether a version satisfies bounds of the forms ``>=1.20`` and ``<1.24``.

    Local parts (``+cpu``) and pre-release marks do not count.
    """
    own = _release(installed)
    for bound in _BOUND.finditer(bounds):
        limit = _release(bound["version"])
        if own < limit if bound["sign"] == ">=" else own >= limit:
            return False
    return True


def _release(text: str) -> tuple[int, ...]:
    numbers = re.match(r"\d+(\.\d+)*", text)
    parts = [] if numbers is None else [int(part) for part in numbers[0].split(".")]
    while parts and parts[-1] == 0:  # 1.20 and 1.20.0 are the same version
        parts.pop()
    return tuple(parts)
