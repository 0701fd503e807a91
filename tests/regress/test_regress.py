"""The whole command on real runtimes: documents, exit codes, files for other programs.

Nothing here depends on how long anything takes: a verdict on the latency is either forced, by a
budget of one round, or may be anything.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import edgekit
from edgekit import machine_tables
from edgekit.cli import main
from edgekit.errors import MissingDependencyError
from edgekit.regress.checks import Check
from edgekit.regress.junit import to_junit
from edgekit.regress.markdown import MARKER, to_markdown
from edgekit.regress.report import RegressReport, TargetReport
from edgekit.regress.rounds import Round
from edgekit.regress.sampling import Latency
from edgekit.regress.sequential import Look, Verdict
from edgekit.regress.settings import Settings
from edgekit.runners.timing import Block

# Fewer rounds than an interval needs, whatever the machine: the latency is inconclusive.
ONE_ROUND: Any = {"budget_s": 0.1, "round_seconds": 0.01, "warmup_seconds": 0.0, "threads": 1}
WORDS = ["--budget", "0.1", "--seconds", "0.01", "--warmup", "0", "--threads", "1"]


def command(*words: object) -> tuple[int, str]:
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(io.StringIO()):
        code = main(["regress", *map(str, words)])
    return code, out.getvalue()


@pytest.fixture(scope="module")
def report(networks: Path) -> RegressReport:
    """A real comparison in both runtimes; its verdict may be anything."""
    for name in ("onnxruntime", "openvino"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    return edgekit.regress(
        networks / "int8.onnx",
        str(networks / "same.onnx"),
        tolerance="300%",
        budget_s=3.0,
        round_seconds=0.02,
        warmup_seconds=0.0,
        threads=1,
    )


def paths(value: Any, at: str = "") -> Iterator[str]:
    if isinstance(value, dict) and value and at not in DEEP:
        for key, item in value.items():
            name = "TARGET" if at == "targets" else key
            yield from paths(item, f"{at}.{name}" if at else name)
    elif isinstance(value, list) and value and isinstance(value[0], dict) and at not in DEEP:
        for item in value:
            yield from paths(item, f"{at}[]")
    else:
        yield at


ROUNDS = "targets.TARGET.latency.rounds[]"
DEEP = {"settings", "conditions", "moments", "skipped", f"{ROUNDS}.base", f"{ROUNDS}.head"}


def test_document_is_what_the_manual_says(report: RegressReport, root: Path) -> None:
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    manual = (root / "docs" / "regression.md").read_text(encoding="utf-8")
    rows = manual.split("## Document of `regress --json`, version 1")[1]
    documented = set(re.findall(r"^\| `([^`]+)` \|", rows, re.MULTILINE))
    assert set(paths(document)) | {"targets.TARGET.latency"} == documented
    assert document["schema_version"] == 1
    assert document["verdict"] in ("pass", "regression", "improvement", "inconclusive")
    assert list(document["targets"]) == ["onnxruntime", "openvino"]
    assert {"cpu", "versions", "governor"} <= set(document["conditions"])
    assert len(document["moments"]) == 2
    assert document["settings"]["seed"] >= 0


def test_rounds_are_of_fresh_processes_in_either_order(report: RegressReport) -> None:
    for target in report.targets:
        assert target.latency is not None
        assert target.latency.seconds <= 3.0 or len(target.latency.rounds) == 1
        for found in target.latency.rounds:
            assert found.turns >= 5
            assert found.base_ms > 0 < found.head_ms
            assert found.base.process_ms > 0 < found.head.process_ms
        assert all(check.passed for check in target.checks)
        assert target.verdict is target.latency.verdict


def test_open_verdict_is_no_failure_unless_strict(networks: Path, tmp_path: Path) -> None:
    files = [networks / "int8.onnx", networks / "same.onnx", "--targets", "onnxruntime", *WORDS]
    code, text = command(*files, "--json")
    document = json.loads(text)
    assert (code, document["verdict"]) == (0, "inconclusive")
    (reason,) = document["targets"]["onnxruntime"]["reasons"]
    assert re.search(r"1 round is too few .* --budget \d+", reason)
    junit, comment = tmp_path / "latency.xml", tmp_path / "latency.md"
    code, text = command(*files, "--strict", "--junit", junit, "--markdown", comment)
    assert code == 1
    assert "verdict: inconclusive" in text
    suite = ElementTree.parse(junit).getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("4", "1")
    assert comment.read_text(encoding="utf-8").startswith(MARKER)


def test_lost_int8_layer_is_a_regression(networks: Path) -> None:
    code, text = command(
        networks / "int8.onnx",
        networks / "float.onnx",
        "--targets",
        "onnxruntime",
        *WORDS,
        "--json",
    )
    document = json.loads(text)
    assert (code, document["verdict"]) == (1, "regression")
    assert "0 of 1 layers in INT8" in document["targets"]["onnxruntime"]["reasons"][0]


def test_head_that_does_not_run_is_a_regression_without_a_latency(
    networks: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    files = [networks / "int8.onnx", tmp_path / "bad.onnx", "--targets", "onnxruntime"]
    code, text = command(*files, *WORDS, "--json")
    target = json.loads(text)["targets"]["onnxruntime"]
    assert (code, target["verdict"], target["latency"]) == (1, "regression", None)
    code, text = command(*files, *WORDS, "--markdown", tmp_path / "c.md")
    assert code == 1
    assert "head does not run" in text
    assert "head does not run" in (tmp_path / "c.md").read_text(encoding="utf-8")


def test_lost_target_is_a_regression(tmp_path: Path, write_result: Callable[..., Path]) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    both = write_result(tmp_path / "both", ("onnxruntime", "openvino"))
    one = write_result(tmp_path / "one")
    code, text = command(both, one, *WORDS, "--json")
    document = json.loads(text)
    assert (code, document["verdict"], document["lost"]) == (1, "regression", ["openvino"])
    assert document["targets"]["onnxruntime"]["verdict"] == "inconclusive"
    assert ElementTree.fromstring(to_junit(document))[0].get("failures") == "1"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--tolerance", "5"], "config"),
        (["--budget", "0"], "config"),
        (["--targets", "tensorrt"], "config"),
        (["--junit", "absent/latency.xml"], "output"),
        (["--input", "1x3x8x8"], "config"),
        (["--percentile", "101"], "usage"),
    ],
    ids=str,
)
def test_what_the_command_refuses(networks: Path, words: list[str], code: str) -> None:
    exit_code, text = command(networks / "int8.onnx", networks / "same.onnx", *words, "--json")
    assert (exit_code, json.loads(text)["error"]["code"]) == (2, code)


def test_runtime_that_is_not_installed(
    networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "raise ModuleNotFoundError('no openvino', name='openvino')"
    (tmp_path / "openvino.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    files = (networks / "int8.onnx", networks / "same.onnx")
    with pytest.raises(MissingDependencyError, match="openvino"):
        edgekit.regress(*files, targets=["openvino"], **ONE_ROUND)
    found = edgekit.regress(*files, seed=5, **ONE_ROUND)
    assert found.settings.seed == 5
    assert [target.name for target in found.targets] == ["onnxruntime"]
    assert "not installed" in found.skipped["openvino"]
    assert any("not compared" in note for note in found.notes)
    assert ElementTree.fromstring(to_junit(found.to_dict()))[0].get("skipped") == "2"


def test_manual_and_its_example_name_the_options_that_there_are(root: Path) -> None:
    import typer

    from edgekit.cli import app

    group: Any = typer.main.get_command(app)
    options = {o for p in group.commands["regress"].params for o in p.opts if o.startswith("--")}
    manual = (root / "docs" / "regression.md").read_text(encoding="utf-8")
    table = set(
        re.findall(r"--[\w-]+", "".join(re.findall(r"^\| (`--.+?) \|", manual, re.MULTILINE)))
    )
    assert table == options
    (example,) = re.findall(r"(?s)edgekit regress base-result.+?(?=- name)", manual)
    assert {"--junit", "--markdown"} <= set(re.findall(r"--[\w-]+", example)) <= options


# Reports made by hand

BLOCK = Block(10, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, None, {}, {})
GOOD = Check("int8_layers", True, 5, 5, "5 of 5 layers in INT8, base: 5 of 5")
BAD = Check("size", False, 1000, 9_000_000, "9000000 bytes, base: 1000")


def target(verdict: Verdict, *checks: Check, name: str = "onnxruntime") -> TargetReport:
    look = Look(12, 0.5, 1.1, 1.06, 1.14, 0.002)
    found = Round("base", 0.1, 2.0, 2.2, 20, 1.5, BLOCK, BLOCK)
    return TargetReport(name, checks, Latency(verdict, 1.05, (look,), (found,), 18.0))


@pytest.fixture
def made() -> Callable[..., RegressReport]:
    def build(*targets: TargetReport, lost: tuple[str, ...] = ()) -> RegressReport:
        machine = {
            "cpu": {"name": "a | <b>", "cores": 2, "flags": ["avx2"]},
            "cpu_limit_cores": None,
        }
        moments = ({"load_average": 0.5},) * 2
        settings = Settings(seed=1)
        return RegressReport("b", "h", settings, machine, moments, targets, lost, (), {})

    return build


@pytest.mark.parametrize(
    ("latency", "check", "verdict"),
    [
        ("pass", GOOD, "pass"),
        ("pass", BAD, "regression"),
        ("improvement", GOOD, "improvement"),
        ("improvement", BAD, "regression"),
        ("inconclusive", BAD, "regression"),
        ("regression", GOOD, "regression"),
    ],
)
def test_failed_check_is_a_regression(latency: str, check: Check, verdict: str) -> None:
    found = target(Verdict(latency), GOOD, check)
    assert found.verdict.value == verdict
    assert (check.text in found.reasons) is not check.passed


@pytest.mark.parametrize(
    ("verdict", "plain", "strict"),
    [
        (Verdict.PASS, False, False),
        (Verdict.IMPROVEMENT, False, False),
        (Verdict.INCONCLUSIVE, False, True),
        (Verdict.REGRESSION, True, True),
    ],
)
def test_gate(
    made: Callable[..., RegressReport], verdict: Verdict, plain: bool, strict: bool
) -> None:
    found = made(target(verdict, GOOD))
    assert (found.failed(), found.failed(strict=True)) == (plain, strict)
    assert made(target(Verdict.PASS, GOOD), lost=("openvino",)).failed()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("verdict", list(Verdict))
def test_junit_counts_what_fails(
    made: Callable[..., RegressReport], verdict: Verdict, strict: bool
) -> None:
    document = made(target(verdict, GOOD, BAD)).to_dict()
    text = to_junit(document, strict=strict)
    assert text.startswith('<?xml version="1.0" encoding="UTF-8"?>')
    (suite,) = ElementTree.fromstring(text)
    latency, good, bad = suite.findall("testcase")
    assert [case.get("name") for case in (latency, good, bad)] == [
        "latency",
        "int8_layers",
        "size",
    ]
    assert latency.get("classname") == "edgekit.regress.onnxruntime"
    assert float(latency.get("time", "")) == 18.0
    failed = verdict is Verdict.REGRESSION or (strict and verdict is Verdict.INCONCLUSIVE)
    assert (latency.find("failure") is not None) is failed
    skipped = verdict is Verdict.INCONCLUSIVE and not strict
    assert (latency.find("skipped") is not None) is skipped
    assert good.find("failure") is None
    failure = bad.find("failure")
    assert failure is not None
    assert failure.get("message") == BAD.text
    assert suite.get("failures") == str(1 + failed)
    assert suite.get("tests") == "3"
    properties = {p.get("name"): p.get("value") for p in latency.iter("property")}
    assert properties["high"] == "1.14"


def test_junit_of_a_message_that_xml_cannot_hold(made: Callable[..., RegressReport]) -> None:
    odd = replace(BAD, text='a "\x1b[31m<b>&\x00')
    (suite,) = ElementTree.fromstring(to_junit(made(target(Verdict.PASS, odd)).to_dict()))
    failure = suite.findall("testcase")[1].find("failure")
    assert failure is not None
    assert failure.get("message") == 'a "?[31m<b>&?'


def test_comment_for_a_pull_request(made: Callable[..., RegressReport]) -> None:
    document = made(target(Verdict.REGRESSION, GOOD, BAD), lost=("openvino",)).to_dict()
    lines = to_markdown(document).splitlines()
    assert lines[:2] == [MARKER, "### edgekit regress: regression"]
    rows = [line for line in lines if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    assert "| onnxruntime | regression | 2 ms | 2.2 ms | 1.100 [1.060, 1.140] | 1.050 |" in rows[2]
    assert "**1.0 kB to 9.00 MB**" in rows[2]
    assert "- onnxruntime: latency is 1.100 [1.060, 1.140] times that of base" in lines
    assert "- openvino: head holds no such target" in lines
    assert r"a \| &lt;b>, 2 cores, avx2." in lines[-1]


def test_text_for_people(made: Callable[..., RegressReport]) -> None:
    text = machine_tables.regression(made(target(Verdict.REGRESSION, GOOD, BAD)).to_dict())
    assert "1.100 [1.060, 1.140]" in text
    assert BAD.text in text
    assert text.rstrip().endswith("verdict: regression")


def test_busy_machine_is_noted(made: Callable[..., RegressReport]) -> None:
    found = made(target(Verdict.PASS, GOOD))
    assert found.notes == ()
    busy = replace(found, moments=({"load_average": 5.0},) * 2)
    assert any("busy" in note for note in busy.notes)
    limited = replace(found, conditions={**found.conditions, "cpu_limit_cores": 1.0})
    assert any("--threads 1" in note for note in limited.notes)
