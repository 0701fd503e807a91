"""Distillation on small networks: what it reaches, what it takes, and what it refuses."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.calibration import _distillation, distill
from edgekit.calibration._class_network import ClassNetwork
from edgekit.calibration._clusterq_options import Losses
from edgekit.calibration._draws import SAMPLES, class_batch, stream
from edgekit.calibration.distill import Distill
from edgekit.capture import CapturedModel, capture
from edgekit.errors import CalibrationError, ConfigError
from edgekit.synthetic import SyntheticSet
from edgekit.types import InputSpec, Preprocessing, Task

SIZE = 12
HALF = Preprocessing((0.5,), (0.25,))  # pixels 0 to 1 become -2 to 2
ENGINE = Distill(samples=16, batch=8, rounds=40)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small are faster so
    yield
    torch.set_num_threads(before)


class Small(nn.Module):
    """A convolution, a depthwise one with stride, a pointwise one, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            nn.Conv2d(8, 12, 1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
        )
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


def pictures(count: int) -> Tensor:
    """Smooth bright fields: far from the noise that distillation begins with."""
    draws = torch.Generator().manual_seed(3)
    coarse = torch.randn(count, 3, 3, 3, generator=draws)
    return (0.6 + F.interpolate(coarse, (SIZE, SIZE), mode="bicubic")).clamp(-2, 2)


def settled(module: nn.Module, *inputs: Tensor) -> nn.Module:
    """Let the BatchNorms store the statistics that these inputs have."""
    for norm in module.modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
            norm.momentum = None  # the plain average
    module.train()
    with torch.no_grad():
        module(*inputs)
    return module.eval()


@pytest.fixture(scope="module")
def module() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = settled(Small(), pictures(256))
    with torch.no_grad():
        network.head.weight.mul_(8)  # as sure of its classes as a trained one
    return network


def captured(module: nn.Module, task: Task = Task.CLASSIFICATION) -> CapturedModel:
    return capture(module, [InputSpec("x", (1, 3, SIZE, SIZE))], task=task, preprocessing=HALF)


@pytest.fixture(scope="module")
def model(module: nn.Module) -> CapturedModel:
    return captured(module)


@pytest.fixture(scope="module")
def made(model: CapturedModel) -> SyntheticSet:
    return ENGINE.synthesize(model)


def distance(module: nn.Module, images: Tensor) -> float:
    """Mean squared error of the mean and deviation at each BatchNorm, by torch's own hooks."""
    errors: list[Tensor] = []

    def measure(norm: nn.Module, seen: tuple[Tensor, ...]) -> None:
        (x,) = seen
        axes = (0, 2, 3)
        stored = norm.running_var.sqrt()  # type: ignore[operator, union-attr]
        mean = (x.mean(axes) - norm.running_mean) / stored  # type: ignore[operator]
        errors.append(mean.square().mean())
        errors.append((x.std(axes, unbiased=False) / stored - 1).square().mean())

    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    with torch.no_grad():
        module(images)
    for hook in hooks:
        hook.remove()
    return float(torch.stack(errors).mean())


def test_the_sets_statistics_approach_the_stored_ones(
    made: SyntheticSet, module: nn.Module, model: CapturedModel
) -> None:
    assert made.facts["loss"] < made.facts["first_loss"] / 20
    start = ClassNetwork.of(model, 4).drawn(16, stream(0, SAMPLES, 0))[0]
    assert distance(module, made.inputs[0]) < distance(module, start) / 20  # by another measure


def test_the_whole_set_matches_and_not_each_part(module: nn.Module, model: CapturedModel) -> None:
    """Parts of two are too few to match alone, all sixteen together are not."""
    made = replace(ENGINE, batch=2).synthesize(model)
    (images,) = made.inputs
    alone = [distance(module, part) for part in images.split(2)]
    assert distance(module, images) < sum(alone) / len(alone) / 2


def test_the_set_is_described(made: SyntheticSet) -> None:
    (images,) = made.inputs
    assert (made.engine, len(made)) == ("distill", 16)
    assert images.shape == (16, 3, SIZE, SIZE)
    assert (images.dtype, images.device.type, images.requires_grad) == (torch.float32, "cpu", False)
    assert (made.facts["rounds"], made.facts["ended"]) == (40, "complete")
    assert made.facts["history"][0] == pytest.approx(made.facts["first_loss"], abs=1e-6)
    assert made.notes[0].startswith("distill: 16 inputs, 40 rounds in ")


def test_values_stay_inside_the_domain_and_fill_it(made: SyntheticSet) -> None:
    (images,) = made.inputs
    assert -2 <= float(images.min()) < -1 < 1 < float(images.max()) <= 2
    assert len(images.unique()) > images.numel() / 2  # and are not pressed against its border


def test_labels_are_the_classes_that_the_network_sees(
    made: SyntheticSet, module: nn.Module
) -> None:
    assert made.labels is not None
    with torch.no_grad():
        assert torch.equal(made.labels, module(made.inputs[0]).argmax(1))


def test_seed_decides(made: SyntheticSet, model: CapturedModel) -> None:
    again = ENGINE.synthesize(model)
    other = replace(ENGINE, seed=1).synthesize(model)
    assert torch.equal(again.inputs[0], made.inputs[0])
    assert not torch.equal(other.inputs[0], made.inputs[0])


def test_samples_that_do_not_fill_the_last_batch(model: CapturedModel) -> None:
    made = Distill(samples=7, batch=3, rounds=2).synthesize(model)
    assert len(made) == 7
    assert made.labels is not None
    assert len(made.labels) == 7


def test_progress_tells_round_loss_and_time(model: CapturedModel) -> None:
    told: list[tuple[str, float]] = []
    replace(ENGINE, rounds=4).synthesize(model, progress=lambda *words: told.append(words))
    assert [fraction for _, fraction in told] == [0.25, 0.5, 0.75, 1.0]
    text, _ = told[0]
    assert text.startswith("distill 1/4: statistics ")
    assert text.endswith(" s left")


def test_run_without_gain_ends_early(model: CapturedModel) -> None:
    made = Distill(samples=2, batch=2, rounds=300, lr=1e-9).synthesize(model)
    assert made.facts["rounds"] < 100
    assert made.facts["ended"].startswith("no further gain after round ")


def test_class_terms_can_be_added(made: SyntheticSet, model: CapturedModel) -> None:
    """With classification, images are of the classes in turn; statistics are matched as well."""
    losses = Losses(ce=1.0, bns=1.0, sfda=0.1, icv=0.05)
    aimed = replace(ENGINE, losses=losses).synthesize(model)
    wanted = torch.cat([class_batch(0, 4, 8, 8, part).labels for part in range(2)])
    assert made.labels is not None
    assert aimed.labels is not None
    hit = float((aimed.labels == wanted).float().mean())
    assert hit > 0.6 > 0.4 > float((made.labels == wanted).float().mean())
    assert aimed.facts["loss"] < aimed.facts["first_loss"] / 4


def test_swing_changes_what_strides_see(made: SyntheticSet, model: CapturedModel) -> None:
    swung = replace(ENGINE, swing=True).synthesize(model)
    assert not torch.equal(swung.inputs[0], made.inputs[0])
    assert swung.facts["loss"] < swung.facts["first_loss"] / 8


# -- any network with BatchNorm -----------------------------------------------------------------


def _conv(rank: int, channels: int) -> nn.Sequential:
    conv, norm = (nn.Conv1d, nn.BatchNorm1d) if rank == 1 else (nn.Conv2d, nn.BatchNorm2d)
    return nn.Sequential(
        conv(channels, 6, 3, padding=1), norm(6), nn.ReLU(), conv(6, 5, 3, padding=1), norm(5)
    )


class FixedBatch(nn.Module):
    """Reshapes its input to a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.body = _conv(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.view(1, 2, 6, 7))


ANY = {
    "one channel, not square": (lambda: _conv(2, 1), (1, 1, 9, 14)),
    "series": (lambda: _conv(1, 3), (1, 3, 21)),
    "vector": (lambda: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6)), (1, 5)),
    "fixed batch": (FixedBatch, (1, 2, 6, 7)),
}


@pytest.mark.parametrize("name", ANY)
def test_any_network_with_batch_norm(name: str) -> None:
    build, shape = ANY[name]
    torch.manual_seed(0)
    count = 1 if name == "fixed batch" else 64
    network = settled(build(), 1.5 + 0.5 * torch.randn(count, *shape[1:]))
    model = capture(network, [InputSpec("x", shape)])
    made = Distill(samples=10, batch=4, rounds=60).synthesize(model)
    assert tuple(made.inputs[0].shape) == (10, *shape[1:])
    assert bool(made.inputs[0].isfinite().all())
    assert made.labels is None  # these are no classifiers
    assert made.facts["loss"] < made.facts["first_loss"] / 4


class TwoInputs(nn.Module):
    """A picture and an id."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.table = _conv(2, 1), nn.Embedding(7, 5)

    def forward(self, image: Tensor, ids: Tensor) -> Tensor:
        return self.image(image).mean((2, 3)) + self.table(ids)


def test_integer_input_stays_as_drawn() -> None:
    torch.manual_seed(0)
    network = settled(TwoInputs(), 1 + torch.randn(32, 1, 6, 6), torch.arange(32) % 7)
    model = capture(network, [InputSpec("image", (1, 1, 6, 6)), InputSpec("ids", (1,), "int64")])
    made = Distill(samples=10, batch=5, rounds=30).synthesize(model)
    image, ids = made.inputs
    assert (tuple(image.shape), tuple(ids.shape)) == ((10, 1, 6, 6), (10,))
    assert ids.dtype == torch.int64
    assert 0 <= int(ids.min()) <= int(ids.max()) < 7
    assert made.facts["loss"] < made.facts["first_loss"] / 4


# -- bad input ----------------------------------------------------------------------------------


def test_no_batch_norm_is_an_error_that_names_another_way() -> None:
    model = capture(nn.Conv2d(3, 2, 3), [InputSpec("x", (1, 3, 8, 8))])
    with pytest.raises(CalibrationError, match="no BatchNorm") as caught:
        Distill().synthesize(model)
    assert "renorm" in caught.value.hint


def test_no_float_input_is_an_error_that_names_another_way() -> None:
    network = nn.Sequential(nn.Embedding(7, 5), nn.Flatten(0, 1), nn.BatchNorm1d(5)).eval()
    model = capture(network, [InputSpec("ids", (1, 3), "int64")])
    with pytest.raises(CalibrationError, match="no float input") as caught:
        Distill().synthesize(model)
    assert "renorm" in caught.value.hint


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_an_error(value: float) -> None:
    torch.manual_seed(0)
    network = Small().eval()
    with torch.no_grad():
        network.body[3].weight[0, 0, 0, 0] = value
    with pytest.raises(CalibrationError, match="on random inputs") as caught:
        Distill(samples=2, batch=2, rounds=3).synthesize(captured(network))
    assert "not finite" in caught.value.hint


def test_divergence_later_keeps_what_was_made(module: nn.Module) -> None:
    network = copy.deepcopy(module)

    def damage(text: str, _fraction: float) -> None:
        if text.startswith("distill 3/"):
            with torch.no_grad():
                network.body[3].weight.fill_(math.nan)  # type: ignore[index, operator, union-attr]

    made = replace(ENGINE, rounds=10).synthesize(captured(network), progress=damage)
    assert made.facts["rounds"] == 3
    assert bool(made.inputs[0].isfinite().all())
    assert made.notes[-1] == "stopped in round 3: the loss became nan"


@pytest.mark.parametrize("option", ["samples", "batch", "rounds", "lr"])
def test_options_must_be_positive(option: str) -> None:
    with pytest.raises(ConfigError, match=option):
        Distill(**{option: 0})  # type: ignore[arg-type]


def short_of_memory(
    monkeypatch: pytest.MonkeyPatch, largest: int, text: str = "not enough memory"
) -> None:
    """Let a run with more than ``largest`` inputs at once fail as torch does."""
    plain = _distillation.Distillation._step

    def step(
        self: _distillation.Distillation, part: int, optimizer: torch.optim.Optimizer
    ) -> float:
        if len(self._drawn[part][0]) > largest:
            raise RuntimeError(f"[enforce fail] DefaultCPUAllocator: {text}: you tried to ...")
        return plain(self, part, optimizer)

    monkeypatch.setattr(distill.Distillation, "_step", step)


def test_lack_of_memory_is_met_by_smaller_batches(
    model: CapturedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_of_memory(monkeypatch, 2)
    made = replace(ENGINE, rounds=3).synthesize(model)
    assert len(made) == 16
    assert made.facts["batch"] == 2
    assert [n for n in made.notes if n.startswith("out of memory")] == [
        "out of memory: continued with 4 inputs at once",
        "out of memory: continued with 2 inputs at once",
    ]


def test_memory_for_not_one_input_is_an_error(
    model: CapturedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_of_memory(monkeypatch, 0)
    with pytest.raises(CalibrationError, match="single input") as caught:
        ENGINE.synthesize(model)
    assert "renorm" in caught.value.hint


def test_other_failures_are_not_taken_for_a_lack_of_memory(
    model: CapturedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_of_memory(monkeypatch, 0, "something else")
    with pytest.raises(RuntimeError, match="something else"):
        ENGINE.synthesize(model)
