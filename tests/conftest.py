"""What several tests need to know about the repository itself."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Import package -> its folder, relative to the repository; folders below belong to it.
PACKAGE_FOLDERS = {
    "edgekit": "edgekit",
    "edgekit.exporters": "exporters",
    "edgekit.calibration": "calibration",
}


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def module_files() -> dict[str, Path]:
    """Every module of the project on disk: dotted import name -> file."""
    found: dict[str, Path] = {}
    for package, folder in PACKAGE_FOLDERS.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            inner = file.relative_to(ROOT / folder).with_suffix("").parts
            parts = inner[:-1] if inner[-1] == "__init__" else inner
            found[".".join((package, *parts))] = file
    return found


@pytest.fixture(scope="session")
def device_part(root: Path, module_files: dict[str, Path]) -> set[str]:
    """The modules of which docs/design.md promises that they run without torch."""
    design = (root / "docs" / "design.md").read_text(encoding="utf-8")
    sentence = re.search(r"imports no torch: ((?:`[^`]+`[,\s]*)+)\.", design)
    assert sentence, "docs/design.md no longer lists the part that imports no torch"
    patterns = [f"edgekit.{text}" for text in re.findall(r"`([^`]+)`", sentence.group(1))]
    return {
        name
        for name in module_files
        for pattern in patterns
        if fnmatch(name, pattern) or name == pattern.removesuffix(".*")
    }
