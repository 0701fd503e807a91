"""Expected against measured errors of single layers: what is measured."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the host part needs the extra 'torch'")


@pytest.fixture
def benchmark(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module; benchmarks are run from the checkout and not installed."""
    monkeypatch.syspath_prepend(str(root))
    return importlib.import_module("benchmarks.sensitivity")


def test_error_of_one_layer_has_its_bias_corrected_and_the_others_in_float(
    benchmark: Any, quantize_module: Callable[..., Any]
) -> None:
    from torch import nn

    from edgekit.types import LayerBits

    narrow = LayerBits(4, 8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5)).eval()
        inputs = torch.randn(40, 12) + 1.0  # a mean, so that the bias matters
    model = quantize_module(network, (12,), bits={"0": narrow, "2": narrow})
    found = benchmark._single_layer_errors(model, inputs)
    assert set(found) == {"0", "2"} == set(model.codes)
    with torch.no_grad():
        wanted = network(inputs)
        variance = (wanted - wanted.mean(0)).square().mean()
        for name in found:
            layer = network.get_submodule(name)
            before = network[: int(name)](inputs)
            kept, mean = layer.weight.clone(), layer(before).mean(0)
            layer.weight.copy_(model.codes[name].dequantize())
            shift = mean - layer(before).mean(0)
            after = network[int(name) + 1 :](layer(before) + shift)
            layer.weight.copy_(kept)
            error = float((after - wanted).square().mean() / variance)
            assert error > 1e-4
            assert found[name] == pytest.approx(error, rel=1e-4)  # float sums in another order


def test_rank_correlation_sees_the_order_alone(benchmark: Any) -> None:
    import numpy as np

    left = np.array([1.0, 5.0, 2.0, 100.0])
    assert benchmark.rank_correlation(left, np.exp(-left)) == pytest.approx(-1.0)
    # 1 - 6 * (1 + 1) / (4 * 15), by the formula for ranks without ties
    assert benchmark.rank_correlation(left, np.array([1.0, 3.0, 2.0, 2.5])) == pytest.approx(0.8)
