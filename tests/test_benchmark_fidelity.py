"""The figure that engines are ranked by: KL of each image, and its paired interval."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the host part needs the extra 'torch'")


@pytest.fixture
def fidelity(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module; benchmarks are run from the checkout and not installed."""
    monkeypatch.syspath_prepend(str(root))
    return importlib.import_module("benchmarks._fidelity")


def logits(seed: int, spread: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, (200, 7)).astype(np.float32)


def test_divergence_equals_torch_in_double(fidelity: Any) -> None:
    reference, value = logits(0), logits(1)
    first, second = (torch.from_numpy(x).double().log_softmax(1) for x in (reference, value))
    expected = torch.nn.functional.kl_div(second, first, reduction="none", log_target=True).sum(1)
    assert fidelity.logit_kl(reference, value) == pytest.approx(expected.numpy(), rel=1e-9)
    assert fidelity.logit_kl(reference, reference).max() == 0.0
    # a constant added to all logits changes no distribution; 100 + x rounds x to 4e-6
    assert fidelity.logit_kl(reference, reference + 100).max() < 1e-9


def test_divergence_of_broken_logits_is_infinite(fidelity: Any) -> None:
    broken = logits(0)
    broken[3, 2], broken[5, 1], broken[7] = np.nan, np.inf, -np.inf
    found = fidelity.logit_kl(logits(0), broken)
    assert np.flatnonzero(np.isinf(found)).tolist() == [3, 5, 7]
    assert not np.isnan(found).any()
    assert fidelity.agreement(logits(0), logits(0)) == 100.0


def test_interval_contains_the_difference_as_often_as_it_says(fidelity: Any) -> None:
    draw = np.random.default_rng(4)
    hits = 0
    for seed in range(60):
        image = draw.exponential(5.0, 300)  # what makes an image hard is common to both methods
        ours, theirs = image + draw.normal(0.3, 1, 300), image + draw.normal(0, 1, 300)
        found = fidelity.paired_interval(ours, theirs, seed)
        assert found.low < found.mean < found.high
        hits += found.low <= 0.3 <= found.high
        # sqrt(2 / 300) is the deviation of the mean; unpaired it would be 0.41
        assert found.high - found.low == pytest.approx(2 * 1.96 * (2 / 300) ** 0.5, rel=0.25)
    assert hits >= 49  # 57 of 60 expected, with a deviation of 1.7: five of them down


def test_interval_says_whether_the_sign_is_sure(fidelity: Any) -> None:
    zeros = np.zeros(50)
    assert fidelity.paired_interval(zeros + 1.0, zeros).excludes_zero
    assert fidelity.paired_interval(zeros - 1.0, zeros).excludes_zero
    assert not fidelity.paired_interval(np.tile([1.0, -1.0], 25), zeros).excludes_zero
