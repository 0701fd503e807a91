"""The twin: on noise its layers have the statistics that they have on real data."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit import reference
from edgekit.calibration.renorm import Renorm
from edgekit.capture import CapturedModel, capture
from edgekit.graph import constant
from edgekit.observe import observe_set
from edgekit.passes.fold_batchnorm import fold_batchnorm
from edgekit.quant.statistics import Statistics
from edgekit.reference import Reference, reference_of
from edgekit.sites import SITE, SitedModel, insert_sites
from edgekit.synthetic import SyntheticSet
from edgekit.types import InputSpec


class Net(nn.Module):
    """Layers with a BatchNorm behind them, one that was folded nowhere, and one without any."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.up, self.second = nn.ConvTranspose2d(8, 6, 2, stride=2), nn.BatchNorm2d(6)
        self.alone = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(self.conv(x)))
        x = F.relu(self.second(self.up(x)))
        return self.head(F.relu(self.alone(x)).mean((2, 3)))


def network() -> CapturedModel:
    generator = torch.Generator().manual_seed(4)
    module = Net().eval()
    for norm in (module.first, module.second, module.alone):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.normal_(generator=generator)
        norm.running_var.uniform_(0.2, 5.0, generator=generator)
        nn.init.normal_(norm.weight, 1.0, 0.5, generator=generator)
        nn.init.normal_(norm.bias, generator=generator)
    return capture(module, [InputSpec("x", (1, 3, 16, 16))])


@pytest.fixture(scope="module")
def folded() -> tuple[SitedModel, Statistics]:
    model = network()
    statistics = Renorm(samples=24, batch=24).observe(model)
    assert statistics.altered
    plain, statistics = fold_batchnorm(model, statistics)
    return insert_sites(plain), statistics


@pytest.fixture(scope="module")
def twin(folded: tuple[SitedModel, Statistics]) -> Reference:
    found = reference_of(*folded)
    assert found is not None
    return found


class _Values(torch.fx.Interpreter):
    """Keeps the value of every node."""

    def __init__(self, graph: torch.fx.GraphModule) -> None:
        super().__init__(graph, garbage_collect_values=False)


def values_of(reference: Reference) -> dict[str, Tensor]:
    run = _Values(reference.graph)
    with torch.no_grad():
        run.run(*reference.inputs)
    return {node.name: value for node, value in run.env.items() if isinstance(value, Tensor)}


def test_layers_of_the_twin_have_the_stored_statistics(
    folded: tuple[SitedModel, Statistics], twin: Reference
) -> None:
    values = values_of(twin)
    checked = [name for name, tensor in folded[1].tensors.items() if tensor.stored is not None]
    assert sorted(checked) == ["conv2d", "conv_transpose2d"]
    for name in checked:
        stored = folded[1].tensors[name].stored
        assert stored is not None
        mean, deviation = stored
        torch.testing.assert_close(values[name].mean((0, 2, 3)), mean, rtol=0, atol=1e-4)
        found = values[name].std((0, 2, 3), correction=0)
        torch.testing.assert_close(found, deviation, rtol=1e-3, atol=1e-4)


def test_the_pass_of_batch_norms_in_batch_mode_is_the_twin(
    folded: tuple[SitedModel, Statistics], twin: Reference
) -> None:
    """All tensors, also behind a BatchNorm that stays: same range on the same noise."""
    values = values_of(twin)
    for name in ("relu", "relu_1", "batch_norm_2", "relu_2"):
        observed = folded[1].tensors[name]
        assert float(values[name].max()) == pytest.approx(observed.maximum, rel=1e-3)
        assert float(values[name].min()) == pytest.approx(observed.minimum, rel=1e-3, abs=1e-4)


def test_weights_differ_by_one_factor_for_each_output_channel(
    folded: tuple[SitedModel, Statistics], twin: Reference
) -> None:
    sited, _ = folded
    assert set(twin.factors) == {"conv2d", "conv_transpose2d"}
    for name, axis in (("conv2d", 0), ("conv_transpose2d", 1)):
        node = sited.node(name).args[1]
        assert isinstance(node, torch.fx.Node)
        assert node.target is SITE
        own = constant(sited.model.graph, node.args[0])
        other = constant(
            twin.graph, next(n for n in twin.graph.graph.nodes if n.name == node.args[0].name)
        )
        assert own is not None
        assert other is not None
        shape = [1] * own.dim()
        shape[axis] = -1
        torch.testing.assert_close(other, own * twin.factors[name].reshape(shape))


def test_inputs_for_the_unaltered_network_need_no_twin() -> None:
    model = network()
    made = SyntheticSet((torch.randn(4, 3, 16, 16),), None, "test")
    statistics = observe_set(model, made, 4, seed=0)
    plain, statistics = fold_batchnorm(model, statistics)
    sited = insert_sites(plain)
    found = reference_of(sited, statistics)
    assert found is not None
    assert found.graph is sited.model.graph
    assert not found.factors


def test_a_channel_that_noise_leaves_constant_keeps_its_weight() -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).eval()
    with torch.no_grad():
        module[0].weight[1] = 0.0  # type: ignore[operator, index]
    model = capture(module, [InputSpec("x", (1, 2, 8, 8))])
    plain, statistics = fold_batchnorm(model, Renorm(samples=8, batch=8).observe(model))
    found = reference_of(insert_sites(plain), statistics)
    assert found is not None
    assert found.factors["conv2d"][1] == 1.0
    assert all(value.isfinite().all() for value in values_of(found).values())


def test_a_fixed_batch_or_no_inputs_leave_nothing_to_measure_on() -> None:
    model = capture(nn.Conv2d(2, 3, 1), [InputSpec("x", (2, 2, 8, 8))])
    statistics = Renorm(samples=4).observe(model)
    assert reference_of(insert_sites(model), statistics) is None


def test_memory_bounds_the_number_of_samples(
    folded: tuple[SitedModel, Statistics], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "_LARGEST", 5 * 6 * 32 * 32)  # the largest map: 6 x 32 x 32
    found = reference_of(*folded)
    assert found is not None
    assert [len(value) for value in found.inputs] == [5]
