"""What must not get worse, with real runtimes: and which artifacts are compared with which."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import ConfigError, EdgekitError, LoadError
from edgekit.regress.checks import Check, check
from edgekit.regress.contests import plan_contests
from edgekit.regress.settings import Settings
from edgekit.runners import open_model

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

SETTINGS = Settings(threads=1)


def checks(base: Path, head: Path, target: str = "onnxruntime", **changes: Any) -> dict[str, Check]:
    (contest,) = plan_contests(base, head, [target], {}).contests
    found = check(contest, Settings(threads=1, **changes))
    return {entry.name: entry for entry in found}


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_equal_files_pass(networks: Path, target: str) -> None:
    pytest.importorskip(target, reason=f"{target} is not installed")
    found = checks(networks / "int8.onnx", networks / "same.onnx", target)
    assert list(found) == ["int8_layers", "size", "output_error"]
    assert all(entry.passed for entry in found.values())
    layers = found["int8_layers"]
    assert (layers.base, layers.head) == (1, 1)
    assert "infinite SQNR" in found["output_error"].text


def test_layer_that_no_longer_runs_in_int8(networks: Path) -> None:
    found = checks(networks / "int8.onnx", networks / "float.onnx")["int8_layers"]
    assert (found.passed, found.base, found.head) == (False, 1, 0)
    assert found.text == "0 of 1 layers in INT8, base: 1 of 1; no longer: layer"
    back = checks(networks / "float.onnx", networks / "int8.onnx")["int8_layers"]
    assert back.passed  # more INT8 layers are none lost


def test_outputs_of_files_are_compared_with_those_of_base(
    networks: Path, tmp_path: Path, write_network: Callable[..., None]
) -> None:
    found = checks(networks / "float.onnx", networks / "int8.onnx")["output_error"]
    feeds = [
        {"x": np.random.default_rng(seed).standard_normal((1, 3, 8, 8)).astype(np.float32)}
        for seed in range(8)
    ]
    outputs = []
    for name in ("float", "int8"):
        with open_model("onnxruntime", networks / f"{name}.onnx", threads=1) as runner:
            outputs.append(np.stack([runner.infer(feed)["y"] for feed in feeds]).astype(np.float64))
    noise = np.sum((outputs[0] - outputs[1]) ** 2)
    expected = 10 * np.log10(np.sum(outputs[0] ** 2) / noise)
    assert found.head == pytest.approx(expected, abs=1e-6)
    assert found.base is None
    assert found.passed
    higher = checks(networks / "float.onnx", networks / "int8.onnx", min_sqnr_db=expected + 1)
    assert not higher["output_error"].passed


def test_outputs_of_results_are_compared_with_their_float_networks(
    tmp_path: Path, write_result: Callable[..., Path]
) -> None:
    good, bad = write_result(tmp_path / "good"), write_result(tmp_path / "bad", noise=0.2)
    worse = checks(good, bad)["output_error"]
    assert worse.base is not None
    assert worse.head is not None
    assert worse.head < worse.base - 1
    assert not worse.passed
    assert "against its float network" in worse.text
    assert checks(bad, good)["output_error"].passed


def test_larger_files(networks: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.onnx"
    onnx = pytest.importorskip("onnx")
    model = onnx.load(networks / "int8.onnx")
    model.doc_string = "x" * 10_000
    onnx.save(model, large)
    found = checks(networks / "int8.onnx", large)["size"]
    assert (found.passed, found.head) == (False, large.stat().st_size)
    model.doc_string = "x" * 4000  # 4 kB more pass in any case
    onnx.save(model, large)
    assert checks(networks / "int8.onnx", large)["size"].passed


def test_head_that_does_not_run_is_a_failed_check(networks: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    found = checks(networks / "int8.onnx", tmp_path / "bad.onnx")
    assert list(found) == ["runs", "size"]
    assert not found["runs"].passed
    assert "head does not run" in found["runs"].text
    with pytest.raises(EdgekitError):
        checks(tmp_path / "bad.onnx", networks / "int8.onnx")


def test_other_inputs_are_no_comparison(
    networks: Path, tmp_path: Path, write_network: Callable[..., None]
) -> None:
    write_network(tmp_path / "large.onnx", quantized=True, size=16)
    with pytest.raises(ConfigError, match=r"base takes .* head"):
        checks(networks / "int8.onnx", tmp_path / "large.onnx")


# What is compared with what


def test_targets_that_only_one_result_has(
    tmp_path: Path, write_result: Callable[..., Path]
) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    both = write_result(tmp_path / "both", ("onnxruntime", "openvino"))
    one = write_result(tmp_path / "one")
    plan = plan_contests(both, one, None, {})
    assert [c.target for c in plan.contests] == ["onnxruntime"]
    assert (plan.lost, plan.new) == (("openvino",), ())
    plan = plan_contests(one, both, None, {})
    assert (plan.lost, plan.new) == ((), ("openvino",))
    with pytest.raises(ConfigError, match="holds no target 'openvino'"):
        plan_contests(both, one, ["openvino"], {})


def test_result_has_a_float_reference_and_a_file_has_none(
    networks: Path, tmp_path: Path, write_result: Callable[..., Path]
) -> None:
    result = write_result(tmp_path / "result")
    (contest,) = plan_contests(result, networks / "int8.onnx", None, {}).contests
    assert contest.base.reference is not None
    assert contest.base.reference.model == result / "float/model.onnx"
    assert contest.base.lane.model == result / "onnxruntime/model.onnx"
    assert contest.head.reference is None


@pytest.mark.parametrize(
    ("base", "head", "error", "text"),
    [
        ("int8.onnx", "absent.onnx", LoadError, "does not exist"),
        ("int8.onnx", "other.plan", ConfigError, "nothing to compare"),
        ("int8.onnx", "notes.txt", ConfigError, "no runtime opens"),
    ],
)
def test_what_cannot_be_compared(
    networks: Path, tmp_path: Path, base: str, head: str, error: type[Exception], text: str
) -> None:
    shutil.copy(networks / "int8.onnx", tmp_path)
    for name in ("other.plan", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(error, match=text):
        plan_contests(tmp_path / base, tmp_path / head, None, {})
