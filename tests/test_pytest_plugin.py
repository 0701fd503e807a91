"""The pytest plugin, in runs of pytest of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from xml.etree import ElementTree

import pytest

from edgekit.pytest_plugin import LatencyOptions

# Too short for an interval, whatever the machine: a latency is inconclusive, a check is not.
MARK = "@pytest.mark.latency(budget_s=0.1, targets=['onnxruntime'], threads=1)"
TESTS = f"""
import pytest

{MARK}
def test_same(latency):
    assert latency("same.onnx", base="int8.onnx").verdict == "inconclusive"

{MARK}
def test_float(latency):
    latency("float.onnx", base="int8.onnx")

{MARK}
def test_new(latency):
    latency("new.onnx")

{MARK}
def test_broken_base(latency):
    latency("same.onnx", base="broken.onnx")

@pytest.mark.latency(tolerence="5%")
def test_marker(latency):
    pass
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("onnx", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    from onnx import TensorProto, helper, save

    folder = tmp_path_factory.mktemp("plugin")
    for name, quantized in (("int8", True), ("same", True), ("float", False)):
        nodes = [helper.make_node("MatMul", ["x.in" if quantized else "x", "w"], ["y"], "layer")]
        if quantized:
            nodes = [
                helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x.q"], "Q"),
                helper.make_node("DequantizeLinear", ["x.q", "scale", "zero"], ["x.in"], "DQ"),
                helper.make_node("DequantizeLinear", ["codes", "scale"], ["w"], "W"),
                helper.make_node("MatMul", ["x.in", "w"], ["m"], "layer"),
                helper.make_node("QuantizeLinear", ["m", "scale", "zero"], ["y.q"], "YQ"),
                helper.make_node("DequantizeLinear", ["y.q", "scale", "zero"], ["y"], "YDQ"),
            ]
        tensors = [helper.make_tensor("w", TensorProto.FLOAT, (16, 16), [0.25] * 256)]
        if quantized:
            tensors = [
                helper.make_tensor("codes", TensorProto.INT8, (16, 16), [4] * 256),
                helper.make_tensor("scale", TensorProto.FLOAT, (), [0.0625]),
                helper.make_tensor("zero", TensorProto.UINT8, (), [128]),
            ]
        ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 16)) for n in "xy"]
        graph = helper.make_graph(nodes, "network", ends[:1], ends[1:], tensors)
        opset = [helper.make_opsetid("", 19)]
        save(helper.make_model(graph, opset_imports=opset, ir_version=9), folder / f"{name}.onnx")
    (folder / "broken.onnx").write_bytes(b"no model")
    (folder / "test_latency.py").write_text(TESTS, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\n", encoding="utf-8")
    return folder


def run_pytest(folder: Path, *words: str) -> tuple[dict[str, ElementTree.Element], str]:
    """Return the outcome of each test and what was printed."""
    command = [sys.executable, "-m", "pytest", "--junit-xml=out.xml", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, *words], cwd=folder, capture_output=True, text=True, timeout=120
    )
    cases = ElementTree.parse(folder / "out.xml").getroot().iter("testcase")
    return {case.get("name", ""): case for case in cases}, run.stdout + run.stderr


def outcome(case: ElementTree.Element) -> str:
    kinds: Sequence[str] = ("failure", "error", "skipped")
    return next((kind for kind in kinds if case.find(kind) is not None), "passed")


def message(case: ElementTree.Element) -> str:
    return next(child.get("message", "") for child in case if child.tag != "properties")


def test_plugin_is_registered() -> None:
    (found,) = (e for e in entry_points(group="pytest11") if e.name == "edgekit")
    assert found.value == "edgekit.pytest_plugin"


def test_without_a_baseline_all_is_skipped(folder: Path) -> None:
    cases, _ = run_pytest(folder, "-k", "not marker")
    assert {outcome(case) for case in cases.values()} == {"skipped"}
    assert all("no --edgekit-baseline" in message(case) for case in cases.values())


def test_outcomes_with_a_baseline(folder: Path) -> None:
    cases, text = run_pytest(folder, "--edgekit-baseline", ".")
    assert {name: outcome(case) for name, case in cases.items()} == {
        "test_same": "passed",
        "test_float": "failure",
        "test_new": "skipped",
        "test_broken_base": "failure",
        "test_marker": "error",
    }
    assert "layers in INT8, base: 1 of 1" in message(cases["test_float"])
    assert "nothing to compare with" in message(cases["test_new"])
    assert "broken.onnx" in message(cases["test_broken_base"])
    assert "tolerence" in message(cases["test_marker"])
    assert "edgekit latency" in text
    assert "same.onnx in onnxruntime: inconclusive" in text
    properties = [p.get("value", "") for p in cases["test_same"].iter("property")]
    assert any("inconclusive" in value for value in properties)


def test_strict_fails_where_it_is_open(folder: Path) -> None:
    words = ["-k", "same", "--edgekit-baseline", "int8.onnx", "--edgekit-strict"]
    # A file as baseline stands for itself, without `base`.
    test = f"import pytest\n\n{MARK}\ndef test_same(latency):\n    latency('same.onnx')\n"
    (folder / "test_file.py").write_text(test, encoding="utf-8")
    cases, _ = run_pytest(folder, "test_file.py", *words)
    assert outcome(cases["test_same"]) == "failure"
    assert "too few" in message(cases["test_same"])


def test_baseline_that_does_not_exist(folder: Path) -> None:
    cases, _ = run_pytest(folder, "-k", "same", "test_latency.py", "--edgekit-baseline", "absent")
    assert outcome(cases["test_same"]) == "error"
    assert "does not exist" in message(cases["test_same"])


def test_marker_takes_the_names_of_regress() -> None:
    from inspect import signature

    from edgekit.regress import regress

    assert set(LatencyOptions.__dataclass_fields__) <= set(signature(regress).parameters)


def test_plugin_imports_nothing_heavy(tmp_path: Path) -> None:
    code = "import sys, json, edgekit.pytest_plugin; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in json.loads(run.stdout)}
    assert loaded & {"numpy", "torch", "onnxruntime", "openvino", "rich", "typer"} == set()
