"""docs/design.md says who may import whom; the sources must agree, and so must the document.

Every import counts, wherever it stands: at module level, inside a function or for the type checker.
The package's own ``edgekit/__init__.py`` stands outside the table: it names modules as strings.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import edgekit
from edgekit import registry

ROOT_PACKAGE = "edgekit"
TABLES = {
    "MODELS": registry.MODELS,
    "TRAINERS": registry.TRAINERS,
    "CALIBRATIONS": registry.CALIBRATIONS,
    "TARGETS": registry.TARGETS,
    "RUNNERS": registry.RUNNERS,
    "VARIANTS": registry.VARIANTS,
}


@dataclass(frozen=True)
class Entry:
    """One cell item of the level table: a module (``capture``) or a package (``quant.*``)."""

    text: str
    level: int

    @cached_property
    def prefix(self) -> str:
        name = self.text.removesuffix(".*")
        return name if name.startswith(f"{ROOT_PACKAGE}.") else f"{ROOT_PACKAGE}.{name}"

    @property
    def is_package(self) -> bool:
        return self.text.endswith(".*")

    def matches(self, module: str) -> bool:
        inside = self.is_package and module.startswith(f"{self.prefix}.")
        return inside or module == self.prefix


@dataclass(frozen=True)
class Source:
    """One module and what it imports."""

    name: str
    is_package: bool
    tree: ast.Module

    def _absolute(self, node: ast.ImportFrom) -> str:
        if node.level == 0:
            return node.module or ""
        package = self.name.split(".") if self.is_package else self.name.split(".")[:-1]
        base = package[: len(package) - node.level + 1]
        return ".".join([*base, node.module] if node.module else base)

    def imports(self) -> Iterator[tuple[str, str | None]]:
        """Yield ``(module, name)``; name is None for a plain ``import module``."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield alias.name, None
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    yield self._absolute(node), alias.name

    def edges(self, known: set[str]) -> set[str]:
        """Return the project's modules that this one imports."""
        found: set[str] = set()
        for module, name in self.imports():
            if module.partition(".")[0] != ROOT_PACKAGE or (module, name) == (
                ROOT_PACKAGE,
                "__version__",
            ):
                continue
            if f"{module}.{name}" in known:
                found.add(f"{module}.{name}")
            elif module == ROOT_PACKAGE and name in edgekit._EXPORTS:
                found.add(edgekit._EXPORTS[name])
            else:
                found.add(module)
        return found - {self.name}


@pytest.fixture(scope="module")
def design(root: Path) -> str:
    return (root / "docs" / "design.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def entries(design: str) -> list[Entry]:
    rows = re.findall(r"^\| (\d) \| (.+) \|$", design, flags=re.MULTILINE)
    found = [
        Entry(text, int(level)) for level, cell in rows for text in re.findall(r"`([^`]+)`", cell)
    ]
    assert found, "docs/design.md has lost its level table"
    return found


@pytest.fixture(scope="module")
def sources(module_files: dict[str, Path]) -> dict[str, Source]:
    return {
        name: Source(name, file.name == "__init__.py", ast.parse(file.read_text(encoding="utf-8")))
        for name, file in module_files.items()
        if name != ROOT_PACKAGE
    }


@pytest.fixture(scope="module")
def graph(sources: dict[str, Source]) -> dict[str, set[str]]:
    """Module -> the project's modules that it imports."""
    return {name: source.edges(set(sources)) for name, source in sources.items()}


@pytest.fixture(scope="module")
def entry_of(entries: list[Entry], sources: dict[str, Source]) -> dict[str, Entry]:
    """Module -> its entry of the table; modules without exactly one have a test of their own."""
    found = {name: [e for e in entries if e.matches(name)] for name in sources}
    return {name: matching[0] for name, matching in found.items() if matching}


def placed_edges(
    graph: Mapping[str, set[str]], entry_of: Mapping[str, Entry]
) -> list[tuple[str, str]]:
    """Return the edges whose two ends stand in the level table."""
    return [(a, b) for a in graph for b in graph[a] if a in entry_of and b in entry_of]


def cycle(graph: Mapping[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_module_has_exactly_one_entry(
    entries: list[Entry], sources: dict[str, Source]
) -> None:
    counts = {name: [e.text for e in entries if e.matches(name)] for name in sources}
    assert {name: found for name, found in counts.items() if len(found) != 1} == {}


def test_every_entry_matches_a_module(entries: list[Entry], sources: dict[str, Source]) -> None:
    assert [e.text for e in entries if not any(e.matches(name) for name in sources)] == []


def test_imports_resolve_to_modules_on_disk(
    graph: dict[str, set[str]], sources: dict[str, Source]
) -> None:
    # Also refuses a plain `import edgekit`, behind which any edge could hide.
    unknown = {f"{a} -> {b}" for a, edges in graph.items() for b in edges if b not in sources}
    assert unknown == set()


def test_nothing_imports_upwards(graph: dict[str, set[str]], entry_of: dict[str, Entry]) -> None:
    wrong = [
        f"{a} (level {entry_of[a].level}) -> {b} (level {entry_of[b].level})"
        for a, b in placed_edges(graph, entry_of)
        if entry_of[b].level > entry_of[a].level
    ]
    assert wrong == []


def test_packages_of_one_level_do_not_import_each_other(
    graph: dict[str, set[str]], entry_of: dict[str, Entry]
) -> None:
    wrong = [
        f"{a} -> {b}"
        for a, b in placed_edges(graph, entry_of)
        if entry_of[a] is not entry_of[b]
        and entry_of[a].level == entry_of[b].level
        and entry_of[a].is_package
        and entry_of[b].is_package
    ]
    assert wrong == []


def test_modules_form_no_cycle(graph: dict[str, set[str]]) -> None:
    assert cycle(graph) == []


def test_entries_form_no_cycle(graph: dict[str, set[str]], entry_of: dict[str, Entry]) -> None:
    # Stricter than the modules alone: package -> module -> same package is a cycle here.
    condensed: dict[str, set[str]] = {}
    for a, b in placed_edges(graph, entry_of):
        if entry_of[a] is not entry_of[b]:
            condensed.setdefault(entry_of[a].text, set()).add(entry_of[b].text)
    assert cycle(condensed) == []


def test_core_names_exporters_and_calibration_only_in_the_registry(
    graph: dict[str, set[str]],
) -> None:
    folders = (f"{ROOT_PACKAGE}.exporters", f"{ROOT_PACKAGE}.calibration")
    wrong = [
        f"{a} -> {b}"
        for a, edges in graph.items()
        for b in edges
        if b.startswith(folders) and not a.startswith(folders)
    ]
    assert wrong == []


@pytest.mark.parametrize("table", TABLES)
def test_registered_modules_do_not_import_each_other(
    graph: dict[str, set[str]], table: str
) -> None:
    registered = {value.partition(":")[0] for value in TABLES[table].values()}
    assert registered <= set(graph), "a registry line names a module that does not exist"
    assert {f"{a} -> {b}" for a in registered for b in graph[a] & registered} == set()


def test_device_part_is_closed_and_free_of_torch(
    graph: dict[str, set[str]], sources: dict[str, Source], device_part: set[str]
) -> None:
    outside = {f"{a} -> {b}" for a in device_part for b in graph[a] - device_part}
    torch = {
        name
        for name in device_part
        for module, _ in sources[name].imports()
        if module.partition(".")[0] == "torch"
    }
    assert (outside, torch) == (set(), set())


def test_no_core_module_asks_for_a_target_by_name(sources: dict[str, Source]) -> None:
    wrong = []
    for name, source in sources.items():
        if name.startswith(f"{ROOT_PACKAGE}.exporters"):
            continue
        for node in ast.walk(source.tree):
            asked: list[ast.expr] = []
            if isinstance(node, ast.Compare):
                asked = [node.left, *node.comparators]
            elif isinstance(node, ast.MatchValue):
                asked = [node.value]
            constants = [c.value for e in asked for c in ast.walk(e) if isinstance(c, ast.Constant)]
            wrong += [f"{name}: '{value}'" for value in constants if value in registry.TARGETS]
    assert wrong == []


def test_package_root_imports_only_errors_at_run_time(module_files: dict[str, Path]) -> None:
    tree = ast.parse(module_files[ROOT_PACKAGE].read_text(encoding="utf-8"))
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    source = Source(ROOT_PACKAGE, True, tree)
    assert source.edges(set(module_files)) <= {f"{ROOT_PACKAGE}.errors"}
