"""The table of rounding methods: each compared with the one before it on the same images."""

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
    return importlib.import_module("benchmarks.rounding")


def test_each_method_is_compared_with_the_one_before(
    benchmark: Any, quantize_module: Callable[..., Any]
) -> None:
    from torch import nn

    from edgekit.rounding import round_weights
    from edgekit.types import Rounding

    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [m for _ in range(4) for m in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
        network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 36, 6)).eval()
        images = torch.randn(30, 8, 6, 6)
    model = quantize_module(network, (8, 6, 6), scheme="w4a8")
    with torch.no_grad():
        wanted = network(images).numpy()
    targets = ("onnxruntime", "openvino")
    first, before = benchmark._measured(model, images, wanted, targets, {})
    assert first["rounding"] == "nearest"
    assert first["against_before"] == {}
    squant = round_weights(model, Rounding.SQUANT)
    second, found = benchmark._measured(squant, images, wanted, targets, before)
    assert second["rounding"] == "squant"
    for target in targets:
        assert first["kl"][target] == pytest.approx(before[target].mean())
        interval = second["against_before"][target]
        assert interval.mean == pytest.approx((found[target] - before[target]).mean())
        assert interval.low < interval.mean < interval.high


def test_what_is_not_known_is_an_error(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--methods", "nearest,coin"]) == 2
    assert benchmark.main(["--targets", "calculator"]) == 2
    told = capsys.readouterr().err
    assert "coin" in told
    assert "calculator" in told
