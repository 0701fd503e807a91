"""Results as a person reads them."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edgekit import tables


def target(**changes: Any) -> dict[str, Any]:
    """A target of report.json that ran well."""
    return {
        "status": "ok",
        "failure": None,
        "notes": [],
        "executed": True,
        "passed": True,
        "reason": None,
        "agreement": 98.4375,
        "sqnr_db": 24.06,
        "integer_layers": 50,
        "weighted_layers": 50,
        "float_layers": {},
        "size_bytes": 4_930_000,
        **changes,
    }


def document(**targets: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": {"notes": ["the task is not stated"]},
        "calibration": {"notes": []},
        "targets": targets,
        "float_size_bytes": 18_600_000,
        "seconds": {"total": 41.7},
    }


FAILED = {"status": "failed", "failure": "its process crashed", "notes": []}


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


def cells(text: str) -> dict[str, list[str]]:
    """First word of each line of the table -> its cells."""
    lines = text.splitlines()[2:]
    return {line.split()[0]: line.split("  ") for line in lines if "   " in line}


def row(text: str, name: str) -> list[str]:
    return [cell.strip() for cell in cells(text)[name] if cell.strip()]


def test_quantization() -> None:
    text = tables.quantization(document(onnxruntime=target()), Path("out"))
    head = "target size (of float) INT8 layers agreement SQNR status"
    assert " ".join(text.splitlines()[0].split()) == head
    expected = ["onnxruntime", "4.93 MB (27 %)", "50 of 50", "98.4 %", "24.1 dB", "ok"]
    assert row(text, "onnxruntime") == expected
    assert "\nthe task is not stated\n" in text
    assert text.endswith("\nwritten to out in 42 s\n")
    assert text.count("\x1b") == 0  # not a terminal: no colours


def test_statuses() -> None:
    reason = "its ONNX file was run in ONNX Runtime"
    text = tables.quantization(
        document(
            first=target(executed=False, reason=reason),
            second=target(executed=False, reason="not checked", agreement=None, sqnr_db=None),
            third=FAILED,
            fourth=target(sqnr_db=None),
            fifth=target(sqnr_db=None, agreement=0.0, passed=False, status="failed", failure="NaN"),
        ),
        Path("out"),
    )
    assert row(text, "first")[-1] == "simulated"
    assert row(text, "second")[-3:] == ["-", "-", "not checked"]
    assert row(text, "third") == ["third", "-", "-", "-", "-", "failed"]
    assert row(text, "fourth")[-2:] == ["infinite", "ok"]
    assert row(text, "fifth")[-3:] == ["0.0 %", "-", "failed"]
    assert f"\nfirst: not executed: {reason}; its INT8 layers are the planned ones\n" in text
    assert "\nthird: failed: its process crashed\n" in text


def test_float_layers_are_listed_with_their_reason() -> None:
    layers = {f"block{index}": "too few channels" for index in range(9)} | {"head": "an odd kind"}
    text = tables.quantization(
        document(openvino=target(float_layers=layers, integer_layers=40, notes=["a hint"])),
        Path("out"),
    )
    assert row(text, "openvino")[2] == "40 of 50"
    names = "block0, block1, block2, block3, block4, block5"
    assert f"openvino: in float: {names} and 3 more, see report.json (too few channels)\n" in text
    assert "openvino: in float: head (an odd kind)\n" in text
    assert "openvino: a hint\n" in text


def test_equal_notes_show_once() -> None:
    plain = document(onnxruntime=target())
    plain["calibration"]["notes"] = ["the task is not stated"]
    assert tables.quantization(plain, Path("out")).count("the task is not stated") == 1


@pytest.mark.parametrize("columns", [10, 40, 60])
def test_narrow_terminal_gets_every_value(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = tables.quantization(document(onnxruntime=target(), openvino=FAILED), Path("a" * 90))
    expected = [
        "onnxruntime",
        "  size (of float): 4.93 MB (27 %)",
        "  INT8 layers: 50 of 50",
        "  agreement: 98.4 %",
        "  SQNR: 24.1 dB",
        "  status: ok",
        "openvino",
    ]
    assert text.splitlines()[:7] == expected
    assert f"written to {'a' * 90} in 42 s" in text  # a path that can be copied


def test_standard_output_without_line_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", wrapper)
    text = tables.quantization(document(onnxruntime=target()), Path("größe"))
    assert text.isascii()
    assert "written to gr\\xf6\\xdfe in" in text


def test_markup_in_names_is_text() -> None:
    text = tables.quantization(document(onnxruntime=target(notes=["[bold]x[/] :cat:"])), Path("o"))
    assert "onnxruntime: [bold]x[/] :cat:\n" in text


def test_evaluation() -> None:
    scores = {
        "onnxruntime": {
            "top1": 74.2,
            "agreement": 97.25,
            "executed": True,
            "reason": None,
            "n": 500,
        },
        "openvino": {
            "top1": None,
            "agreement": None,
            "executed": False,
            "reason": "not installed",
            "n": 0,
        },
        "tensorrt": {
            "top1": 74.0,
            "agreement": 97.0,
            "executed": False,
            "reason": "no GPU",
            "n": 500,
        },
    }
    text = tables.evaluation({"targets": scores, "float": {"top1": 75.44}})
    assert row(text, "float") == ["float", "75.4 %", "-", "-", "reference"]
    assert row(text, "onnxruntime") == ["onnxruntime", "74.2 %", "97.2 %", "500", "executed"]
    assert row(text, "openvino") == ["openvino", "-", "-", "0", "not run"]
    assert row(text, "tensorrt")[-1] == "simulated"
    assert text.endswith("\nopenvino: not installed\ntensorrt: no GPU\n")


def test_models() -> None:
    model = {
        "name": "net",
        "task": "ranking",
        "inputs": [{"shape": [1, 50]}, {"shape": [1, 3, 8, 8]}],
        "parameters": 4_652_008,
        "weights": "published",
        "weights_available": False,
    }
    text = tables.models([model, model | {"name": "other", "weights_available": True}])
    assert row(text, "net")[:4] == ["net", "ranking", "1x50, 1x3x8x8", "4.65 M"]
    assert row(text, "net")[-1] == "published, not installed"
    assert row(text, "other")[-1] == "published"
