"""Every common kind of network is quantized, exported to three targets, run and verified.

Two things are quicker here than in the command, which ``benchmarks/any_model.py`` runs as it is:
the worker that runs an artifact works in this process instead of a new one, and TensorRT engines
are built for one network of each family. Of the others, TensorRT's file is simulated like all are.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the host part needs the extra 'torch'")

from edgekit import pipeline  # noqa: E402
from edgekit.errors import EdgekitError  # noqa: E402
from edgekit.exporters import tensorrt  # noqa: E402
from edgekit.fidelity import sqnr_db  # noqa: E402
from edgekit.registry import RUNNERS, TARGETS, resolve  # noqa: E402
from edgekit.runners import child, open_model  # noqa: E402
from edgekit.types import Effort  # noqa: E402

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))
try:
    from architectures import CASES, Case
finally:
    sys.path.pop(0)
VARIABLE = [case for case in CASES if any(option.variable_axes for option in case.options)]


def work_in_this_process(module: str, job: Path, log: Path, timeout_s: float) -> int:
    """Stand in for `edgekit.runners.child._run`: the same worker, without starting Python."""
    del timeout_s
    log.touch()
    importlib.import_module(module).main(job)
    return 0


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    chosen: Case = request.param
    return chosen


@pytest.fixture(scope="module")
def result(case: Case, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, Any]]:
    """One network's result and its report, for every target that can be written here."""
    folder = tmp_path_factory.mktemp("compatibility")
    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.syspath_prepend(TESTS)
        patch.setattr(child, "_run", work_in_this_process)
        patch.setattr(pipeline, "usable_cores", lambda: 1)
        if not case.engine:
            patch.setattr(tensorrt, "find_builder", lambda: None)
        report = pipeline.quantize(
            case.write_weights(folder),
            out=folder / "result",
            arch=case.arch,
            inputs=case.options,
            task=case.task,
            effort=Effort.INSTANT,  # minutes less in all
        )
    return folder / "result", report.document


@contextmanager
def one_thread() -> Iterator[None]:
    """Work in one thread: the tensors are so small that several would wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(params=RUNNERS)
def target(
    request: pytest.FixtureRequest, case: Case, result: tuple[Path, Mapping[str, Any]]
) -> tuple[str, Mapping[str, Any]]:
    """The name of a target that delivers the network, and the report on it."""
    name: str = request.param
    document = result[1]
    missing: EdgekitError | None = resolve(TARGETS, name, "target")().missing()
    if missing is not None:
        pytest.skip(missing.message)
    if name in case.refused:
        pytest.skip(f"refused: {document['targets'][name]['failure']}")
    return name, document["targets"][name]


def test_verified(case: Case, target: tuple[str, Mapping[str, Any]]) -> None:
    name, entry = target
    assert entry["status"] == "ok", entry["failure"]
    assert entry["passed"], entry["reason"]
    if entry["agreement"] is None:
        pytest.skip(entry["reason"])  # TensorRT's file is simulated in ONNX Runtime
    assert entry["executed"] == (name != "tensorrt")
    engines = [path for path in entry["files"] if path.endswith(".plan")]
    if name == "tensorrt" and case.engine and tensorrt.find_builder() is not None:
        assert engines
        assert not [note for note in entry["notes"] if note.startswith("warning")]
    else:
        assert not engines


def test_layers_run_on_integers(case: Case, target: tuple[str, Mapping[str, Any]]) -> None:
    name, entry = target
    if not entry["weighted_layers"]:
        pytest.skip(entry["reason"])
    expected = case.in_float.get(name, {})
    assert set(entry["float_layers"]) == set(expected)
    for layer, reason in expected.items():
        assert re.search(reason, entry["float_layers"][layer])
    assert entry["integer_layers"] == entry["weighted_layers"] - len(expected)
    # Nothing runs mostly in float, whatever the reason.
    assert entry["integer_layers"] > entry["weighted_layers"] / 2


def test_close_to_float(case: Case, target: tuple[str, Mapping[str, Any]]) -> None:
    _, entry = target
    if entry["agreement"] is None:
        pytest.skip(entry["reason"])
    assert entry["sqnr_db"] >= case.least_sqnr_db


def test_refusals_have_the_stated_reason(
    case: Case, result: tuple[Path, Mapping[str, Any]]
) -> None:
    _, document = result
    failures = {
        name: entry["failure"]
        for name, entry in document["targets"].items()
        if entry["status"] != "ok"
    }
    assert set(failures) == set(case.refused) & set(document["targets"])
    for name, reason in failures.items():
        assert re.search(case.refused[name], reason)


@pytest.mark.parametrize("case", VARIABLE, ids=lambda case: case.name, indirect=True)
def test_other_sizes_run_where_axes_are_variable(
    case: Case, target: tuple[str, Mapping[str, Any]], result: tuple[Path, Mapping[str, Any]]
) -> None:
    name, entry = target
    feed = torch.randn(2, 3, 48, 80, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = case.build()(feed).numpy()
    folder, _ = result
    simulate = not entry["executed"]
    with open_model(name, folder / entry["model"], threads=1, simulate=simulate) as runner:
        (got,) = runner.infer({"x": feed.numpy()}).values()
    # white noise is not what the ranges are for; a wrong size or layout gives 0 dB or an error
    assert sqnr_db(expected, got) >= case.least_sqnr_db - 5


def test_table_in_the_docs_names_every_network(root: Path) -> None:
    rows = (root / "docs" / "networks.md").read_text(encoding="utf-8").splitlines()
    heads = [row.split("|")[1].strip() for row in rows if row.startswith("| ")]
    for case in CASES:
        assert case.name in heads, f"python -m benchmarks.any_model --docs: {case.name} is missing"


def test_there_are_enough_of_them() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 25
    with_engine = {case.family for case in CASES if case.engine}
    assert with_engine == {case.family for case in CASES}
