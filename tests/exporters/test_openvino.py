"""OpenVINO's files: inputs keep their names whatever the plugin drops behind them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit.exporters.openvino import OpenVinoTarget
from edgekit.quantized import QuantizedModel, lower
from edgekit.runners import open_model
from edgekit.template import build_template
from edgekit.types import Cpu, InputSpec

pytest.importorskip("openvino", reason="writes and runs OpenVINO's files")


class Words(nn.Module):
    """Ids that are cast, which the CPU plugin does not need to do."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids.long()).mean(1))


def test_input_that_is_cast_keeps_its_name(
    quantize_module: Callable[..., QuantizedModel], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = Words().eval()
    made = quantize_module(module, InputSpec("ids", (1, 6), "int32"))
    lowered = lower(made, OpenVinoTarget().profile(Cpu.AVX2), {})
    artifact = OpenVinoTarget().export(build_template(made.sited), lowered, tmp_path).wait()
    ids = np.arange(12, dtype=np.int32).reshape(2, 6)
    with open_model("openvino", tmp_path / artifact.model, threads=1) as runner:
        assert [info.name for info in runner.inputs] == ["ids"]
        (got,) = runner.infer({"ids": ids}).values()
    expected = module(torch.from_numpy(ids)).detach().numpy()
    # one layer of 8 bits: its error stays below a twentieth of the largest output
    assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()
