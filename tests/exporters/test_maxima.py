"""Maxima in front of a quantizer, as OpenVINO runs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit.exporters._maxima import write_maxima_as_top
from edgekit.exporters.openvino import OpenVinoTarget
from edgekit.fidelity import sqnr_db
from edgekit.quantized import QuantizedModel, lower
from edgekit.runners.openvino import OpenVinoRunner
from edgekit.simulate import simulate
from edgekit.template import build_template
from edgekit.types import Cpu

onnx = pytest.importorskip("onnx", reason="parses the graphs")
ir = pytest.importorskip("onnx_ir", reason="the pass rewrites onnx_ir models")

REDUCTIONS = {
    "max, one axis": "axes = Constant <value_ints = [2]> () y = ReduceMax <keepdims = 0> (x, axes)",
    "max, kept": "axes = Constant <value_ints = [-1]> () y = ReduceMax (x, axes)",
    "min, two": "axes = Constant <value_ints = [3, 1]> () y = ReduceMin <keepdims = 0> (x, axes)",
    "max, all": "y = ReduceMax (x)",
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_top_gives_the_same_numbers(name: str) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="runs the graphs")
    rank = {"max, one axis": "N, A, B", "min, two": "N, A"}.get(name, "N, A, B, C")
    header = f'<ir_version: 9, opset_import: ["" : 20]> g (float[2,3,4,5] x) => (float[{rank}] y)'
    proto = onnx.parser.parse_model(f"{header} {{ {REDUCTIONS[name]} }}")
    for node in proto.graph.node:
        node.name = node.output[0]
    model = ir.serde.deserialize_model(proto)
    write_maxima_as_top(model)
    found = ir.to_proto(model)
    assert not {node.op_type for node in found.graph.node} & {"ReduceMax", "ReduceMin"}
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    before, after = (
        runtime.InferenceSession(graph.SerializeToString()).run(None, {"x": x})[0]
        for graph in (proto, found)
    )
    np.testing.assert_array_equal(before, after)


class Pooled(nn.Module):
    def __init__(self, reduce: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.reduce = reduce
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.reduce(torch.relu(self.conv(x))))


@pytest.mark.parametrize(
    "reduce",
    [
        lambda x: x.amax((2, 3)),
        lambda x: x.flatten(2).amax(2),
        lambda x: x.permute(0, 2, 3, 1).amax((1, 2)),
        lambda x: x.amax((2, 3)) + 0.5,
        lambda x: nn.functional.adaptive_max_pool2d(x, 1).flatten(1),
    ],
    ids=["space", "flat", "channels last", "before a sum", "adaptive"],
)
def test_maximum_before_a_quantizer(
    quantize_module: Callable[..., QuantizedModel],
    reduce: Callable[[Tensor], Tensor],
    tmp_path: Path,
) -> None:
    pytest.importorskip("openvino", reason="runs the exported file")
    torch.manual_seed(0)
    model = quantize_module(Pooled(reduce), (3, 12, 11))
    target = OpenVinoTarget()
    lowered = lower(model, target.profile(Cpu.AVX2), {})
    artifact = target.export(build_template(model.sited), lowered, tmp_path).wait()
    x = torch.randn(4, 3, 12, 11)
    path = tmp_path / artifact.model
    with OpenVinoRunner(path, threads=1, inference_precision="f32") as runner:
        (got,) = runner.infer({"x0": x.numpy()}).values()
    # both round the same values; where a maximum is rounded wrongly it is below 15 dB
    assert sqnr_db(simulate(lowered, x)[0].numpy(), got) > 40
