from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import ConfigError, LoadError
from edgekit.runners.openvino import OpenVinoRunner
from edgekit.runners.tensors import TensorInfo

pytest.importorskip("openvino", reason="openvino is not installed")

# As for ONNX Runtime: the integer layer is exact, the float one sums 72 products up to 6.4.
FLOAT_TOLERANCE = 3e-5


def test_outputs_are_those_of_exact_arithmetic(qdq_network: Any, openvino_ir: Path) -> None:
    x = qdq_network.inputs(3)
    # f32: on CPUs with bfloat16 units a plain compilation would round the float layer.
    with OpenVinoRunner(openvino_ir, threads=1, inference_precision="f32") as runner:
        outputs = runner.infer({"x": x})
    assert list(outputs) == ["y"]
    np.testing.assert_allclose(outputs["y"], qdq_network.reference(x), rtol=0, atol=FLOAT_TOLERANCE)


def test_executed_precision_is_read_from_the_execution_graph(openvino_ir: Path) -> None:
    with OpenVinoRunner(openvino_ir, inference_precision="f32") as runner:
        layers = runner.executed_layers()
    assert [(layer.name, layer.op, layer.precision) for layer in layers] == [
        ("conv_int", "Convolution", "int8"),
        ("y", "Convolution", "float32"),  # OpenVINO calls the last node after the output
    ]


def test_results_outlive_the_next_inference(qdq_network: Any, openvino_ir: Path) -> None:
    x = qdq_network.inputs(2)
    with OpenVinoRunner(openvino_ir) as runner:
        first = runner.infer({"x": x[:1]})["y"]
        kept = first.copy()
        runner.infer({"x": x[1:]})
    np.testing.assert_array_equal(first, kept)


def test_an_onnx_file_opens_too(qdq_network: Any, openvino_ir: Path) -> None:
    x = qdq_network.inputs(1)
    with OpenVinoRunner(qdq_network.path) as direct, OpenVinoRunner(openvino_ir) as converted:
        assert direct.inputs == (TensorInfo("x", "float32", (None, 3, 8, 8)),)
        np.testing.assert_array_equal(direct.infer({"x": x})["y"], converted.infer({"x": x})["y"])


def test_wrong_feeds_are_named(openvino_ir: Path) -> None:
    with (
        OpenVinoRunner(openvino_ir) as runner,
        pytest.raises(ConfigError, match=r"\[\?, 3, 8, 8\], got float32 \[1, 4, 8, 8\]"),
    ):
        runner.infer({"x": np.zeros((1, 4, 8, 8), np.float32)})


@pytest.mark.parametrize("content", [b"", b"<net"], ids=["empty", "truncated"])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.xml"
    path.write_bytes(content)
    with pytest.raises(LoadError, match="OpenVINO cannot open"), OpenVinoRunner(path):
        pass


_INTERRUPTED = """
import signal, sys
from pathlib import Path
from edgekit.runners.openvino import OpenVinoRunner
one, other = (OpenVinoRunner(Path(sys.argv[1])) for _ in range(2))
one.__enter__()
other.__enter__()
one.__exit__(None, None, None)  # the first one first
other.__exit__(None, None, None)
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_interrupt_after_several_models(openvino_ir: Path) -> None:
    """On CPUs with AVX-512 a second ``Core`` leaves signals a stack that is gone."""
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, str(openvino_ir)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
