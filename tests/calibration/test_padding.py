"""What padding shifts in a convolution's mean, against convolutions written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.calibration._padding import PaddingShift, with_padding_shifts
from edgekit.calibration._teacher import NormLayer, Teacher
from edgekit.calibration.distill import PORTABLE_CE, PORTABLE_PADDING, Distill
from edgekit.capture import CapturedModel, capture
from edgekit.errors import ConfigError
from edgekit.types import InputSpec, Task


class Three(nn.Module):
    """Padded convolutions with stride and groups, an unpadded one, and one without a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 5, stride=2, padding=2, groups=6)
        self.deep = nn.BatchNorm2d(6)
        self.point = nn.Conv2d(6, 4, 1)
        self.last = nn.BatchNorm2d(4)
        self.bare = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        x = F.relu(self.deep(self.second(x)))
        return self.bare(F.relu(self.last(self.point(x))))


def images(count: int) -> Tensor:
    """Images that are brighter at one side."""
    draws = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 10, 8, generator=draws) + torch.linspace(-1, 2, 8)


@pytest.fixture(scope="module")
def module() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Three()
    with torch.no_grad():
        network.train()(images(32))
    return network.eval()


@pytest.fixture(scope="module")
def model(module: nn.Module) -> CapturedModel:
    return capture(module, [InputSpec("x", (1, 3, 10, 8))], task=Task.OTHER)


def direct(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Each padded convolution's shift, in float64, from what torch's own hooks see."""
    found: list[Tensor] = []

    def measure(conv: nn.Conv2d, seen: tuple[Tensor, ...], result: Tensor) -> None:
        (source,) = (value.double() for value in seen)
        mean = source.mean((0, 2, 3), keepdim=True).expand_as(source[:1])
        bias = None if conv.bias is None else conv.bias.double()
        assumed = F.conv2d(
            mean, conv.weight.double(), bias, conv.stride, conv.padding, groups=conv.groups
        )
        found.append(result.double().mean((0, 2, 3)) - assumed.mean((0, 2, 3)))

    assert isinstance(module, Three)
    hooks = [conv.register_forward_hook(measure) for conv in (module.first, module.second)]
    with torch.no_grad():
        module(x)
    for hook in hooks:
        hook.remove()
    return found


def test_shifts_are_those_of_the_padded_convolutions(
    module: nn.Module, model: CapturedModel
) -> None:
    watched, norms = with_padding_shifts(model)
    names = [norm.name for norm in Teacher(model).norms]
    assert list(norms) == names[:2]  # neither the unpadded one, nor the one without a norm
    result, *shifts = watched(images(12))
    assert torch.equal(result, model(images(12))[0])
    for shift, expected in zip(shifts, direct(module, images(12)), strict=True):
        assert shift.shape == (1, 6)
        assert float(expected.abs().max()) > 0.02  # there is something to find
        # means of values around 1 in float32
        torch.testing.assert_close(shift[0].double(), expected, rtol=0, atol=1e-5)


def test_graph_of_the_model_stays_as_it_is(model: CapturedModel) -> None:
    before = model.graph.code
    watched, _ = with_padding_shifts(model)
    assert model.graph.code == before
    assert watched.graph.state_dict().keys() <= model.graph.state_dict().keys()


def test_same_mean_everywhere_shifts_nothing(model: CapturedModel) -> None:
    watched, _ = with_padding_shifts(model)
    constant = torch.full((4, 3, 10, 8), 0.7)
    _, first, _ = watched(constant)
    assert float(first.abs().max()) < 1e-6  # of results around 1, in float32


def test_parts_together_are_the_set(module: nn.Module, model: CapturedModel) -> None:
    watched, names = with_padding_shifts(model)
    norms = [norm for norm in Teacher(model).norms if norm.name in names]
    shift = PaddingShift(norms, parts=3)
    shift.with_part(1, [row * 5 for row in watched(images(12)[4:8])[1:]])  # is replaced below
    for index, part in enumerate(images(12).split(4)):
        found = shift.with_part(index, watched(part)[1:])
    squares = [
        (row.square() / norm.variance.double()).mean()
        for row, norm in zip(direct(module, images(12)), norms, strict=True)
    ]
    assert float(found) == pytest.approx(float(torch.stack(squares).mean()), rel=1e-4)  # float32


def test_gradient_reaches_the_live_part_alone() -> None:
    norm = NormLayer("n", torch.zeros(2), torch.full((2,), 4.0))
    shift = PaddingShift([norm], parts=2)
    one, two = (torch.full((1, 2), value, requires_grad=True) for value in (1.0, 3.0))
    shift.with_part(0, [one])
    loss = shift.with_part(1, [two])
    assert loss.item() == pytest.approx(1.0)  # (2 / 2)^2
    loss.backward()
    assert one.grad is None
    assert two.grad is not None
    # d/dx of ((1 + x) / 2)^2 / 4, over two channels
    torch.testing.assert_close(two.grad, torch.full((1, 2), 0.25))


def test_state_is_what_it_was() -> None:
    norm = NormLayer("n", torch.zeros(2), torch.ones(2))
    shift, other = (PaddingShift([norm], parts=2) for _ in range(2))
    shift.with_part(0, [torch.ones(1, 2)])
    other.restore(shift.state())
    part = [torch.tensor([[2.0, 4.0]])]
    assert torch.equal(other.with_part(1, part), shift.with_part(1, part))


# -- in distillation ----------------------------------------------------------------------------

ENGINE = Distill(samples=16, batch=8, rounds=40)


def test_portable_set_has_less_of_it_and_matches_as_well(
    module: nn.Module, model: CapturedModel
) -> None:
    plain, portable = ENGINE.synthesize(model), ENGINE.portable().synthesize(model)
    norms = Teacher(model).norms

    def shifted(inputs: Tensor) -> float:
        rows = zip(direct(module, inputs), norms, strict=False)
        return float(torch.cat([row / norm.variance.sqrt() for row, norm in rows]).norm())

    assert shifted(portable.inputs[0]) < shifted(plain.inputs[0]) / 2
    # the statistics are not given up for it: 2 % of their loss here
    assert portable.facts["loss"] < plain.facts["loss"] * 1.1


def test_portable_is_the_engine_with_two_more_terms() -> None:
    assert (ENGINE.padding, ENGINE.losses.ce) == (0, 0)
    portable = ENGINE.portable()
    assert (portable.padding, portable.losses.ce) == (PORTABLE_PADDING, PORTABLE_CE)
    assert replace(portable, padding=0.0, losses=ENGINE.losses) == ENGINE


class Classifier(nn.Module):
    """Logits that are a linear layer's of the pooled features."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Three(), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)) * 200)  # as sure of its classes as a trained one


def test_portable_outputs_reach_further(module: nn.Module) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        network = Classifier()
    network.body.load_state_dict(module.state_dict())
    model = capture(network.eval(), [InputSpec("x", (1, 3, 10, 8))], task=Task.CLASSIFICATION)
    spread = [
        float(model(engine.synthesize(model).inputs[0])[0].std(0).mean())
        for engine in (replace(ENGINE.portable(), losses=ENGINE.losses), ENGINE.portable())
    ]
    assert spread[1] > spread[0] * 1.3  # found: 1.7


SERIES: dict[str, Callable[[], nn.Module]] = {
    "series": lambda: nn.Sequential(nn.Conv1d(3, 6, 5, padding="same"), nn.BatchNorm1d(6)),
    "nothing padded": lambda: nn.Sequential(nn.Conv1d(3, 6, 5), nn.BatchNorm1d(6)),
}


@pytest.mark.parametrize("name", SERIES)
def test_any_network(name: str) -> None:
    torch.manual_seed(0)
    network = SERIES[name]()
    network.train()(1 + torch.randn(64, 3, 21))
    model = capture(network.eval(), [InputSpec("x", (1, 3, 21))])
    assert len(with_padding_shifts(model)[1]) == (name == "series")
    made = ENGINE.portable().synthesize(model)
    assert tuple(made.inputs[0].shape) == (16, 3, 21)
    assert made.facts["loss"] < made.facts["first_loss"] / 4


@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_weight_is_not_negative(weight: float) -> None:
    with pytest.raises(ConfigError, match="padding"):
        Distill(padding=weight)
