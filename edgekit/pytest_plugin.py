"""pytest plugin: the fixture ``latency`` compares an artifact with a baseline, in one run.

It is loaded with pytest wherever edgekit is installed, so nothing heavy is imported before a test
asks for the fixture. ``docs/regression.md`` has an example.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from edgekit.errors import EdgekitError
from edgekit.manifest import MANIFEST_NAME

if TYPE_CHECKING:
    from edgekit.regress.report import RegressReport

_PROPERTY = "edgekit_latency"  # travels with a test's report, also from the workers of pytest-xdist
_MARKER = (
    "latency(tolerance='5%', floor_us=5.0, budget_s=60.0, targets=None, threads=None, batch=1, "
    "size_tolerance='1%'): limits of the fixture `latency`"
)


@dataclass(frozen=True, slots=True)
class LatencyOptions:
    """What the marker may say; the meanings are those of :func:`edgekit.regress`."""

    tolerance: float | str = "5%"
    floor_us: float = 5.0
    budget_s: float = 60.0
    targets: Sequence[str] | None = None
    threads: int | None = None
    batch: int = 1
    size_tolerance: float | str = "1%"


@dataclass(frozen=True, slots=True)
class Latency:
    """The fixture: call it with an artifact, and the test fails if it has become slower.

    Attributes:
        baseline: what ``--edgekit-baseline`` says.
        options: what the marker says.
        strict: an inconclusive comparison fails, too.
        properties: where the verdict is noted.
    """

    baseline: Path
    options: LatencyOptions
    strict: bool
    properties: list[tuple[str, object]]

    def __call__(self, head: str | Path, *, base: str | Path | None = None) -> RegressReport:
        """Compare an artifact with its baseline.

        The baseline is a result directory or a model file, or a folder that holds one under the
        same name as ``head``; where it does not, there is nothing to compare and the test is
        skipped.

        Args:
            head: a result directory, or a model file.
            base: what to compare with, below the baseline folder.
        """
        __tracebackhide__ = True
        from edgekit.regress import regress

        found = self._base(Path(head), base)
        chosen = self.options
        try:
            report = regress(
                found,
                head,
                targets=chosen.targets,
                tolerance=chosen.tolerance,
                floor_us=chosen.floor_us,
                budget_s=chosen.budget_s,
                threads=chosen.threads,
                batch=chosen.batch,
                size_tolerance=chosen.size_tolerance,
            )
        except EdgekitError as error:
            hint = f"\nhint: {error.hint}" if error.hint else ""
            pytest.fail(f"{error.message}{hint}", pytrace=False)
        lines = list(_lines(report))
        self.properties.extend((_PROPERTY, line) for line in lines)
        if report.failed(strict=self.strict):
            pytest.fail("\n".join(lines), pytrace=False)
        return report

    def _base(self, head: Path, base: str | Path | None) -> Path:
        if base is None and _is_artifact(self.baseline):
            return self.baseline
        found = self.baseline / (head.resolve().name if base is None else base)
        if not found.exists():
            pytest.skip(f"'{found}' does not exist: nothing to compare with")
        return found


def _is_artifact(path: Path) -> bool:
    return path.is_file() or (path / MANIFEST_NAME).is_file()


def _lines(report: RegressReport) -> Iterator[str]:
    """Yield the verdict of each target and its reasons."""
    from edgekit.regress.report import describe_ratio

    for target in report.targets:
        latency = target.latency
        ratio = "" if latency is None else f", latency {describe_ratio(latency.ratio)} of base"
        reasons = "".join(f"; {reason}" for reason in target.reasons)
        yield f"{report.head} in {target.name}: {target.verdict.value}{ratio}{reasons}"
    yield from report.notes


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("edgekit", "latency regression tests")
    group.addoption(
        "--edgekit-baseline",
        metavar="DIR",
        type=Path,
        help="what the fixture `latency` compares with: a result of edgekit, or a folder of them",
    )
    group.addoption(
        "--edgekit-strict",
        action="store_true",
        help="fail where a comparison is inconclusive, too",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", _MARKER)


@pytest.fixture
def latency(request: pytest.FixtureRequest) -> Latency:
    """Compare an artifact with its baseline: ``latency("out")``; see :class:`Latency`."""
    marker = request.node.get_closest_marker("latency")
    try:
        options = LatencyOptions(**({} if marker is None else marker.kwargs))
    except TypeError as error:
        raise pytest.UsageError(f"@pytest.mark.latency: {error}; it may be {_MARKER}") from error
    baseline = request.config.getoption("--edgekit-baseline")
    if baseline is None:
        pytest.skip("no --edgekit-baseline: nothing to compare with")
    if not baseline.exists():
        raise pytest.UsageError(f"--edgekit-baseline: '{baseline}' does not exist")
    strict = bool(request.config.getoption("--edgekit-strict"))
    return Latency(baseline, options, strict, request.node.user_properties)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Show the verdicts, those of passed tests too."""
    reports = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, ())
        if report.when == "call"
    ]
    lines = [
        line
        for report in reports
        for name, line in getattr(report, "user_properties", ())
        if name == _PROPERTY
    ]
    if lines:
        terminalreporter.section("edgekit latency")
        for line in lines:
            terminalreporter.line(str(line))
