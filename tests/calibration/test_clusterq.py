"""ClusterQ on a small network that is trained here: what training reaches, and what can fail."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.calibrate import observe_made
from edgekit.calibration._class_network import ClassNetwork
from edgekit.calibration._draws import ClassBatch, stream
from edgekit.calibration._generator_training import GeneratorTraining
from edgekit.calibration._image_source import ImageSource, Look
from edgekit.calibration._objective import Objective
from edgekit.calibration.clusterq import (
    BNS_ONLY,
    GDFQ,
    ClusterQ,
    LabelForm,
    Losses,
    Making,
    Schedule,
)
from edgekit.capture import CapturedModel, capture
from edgekit.errors import CalibrationError, ConfigError
from edgekit.synthetic import SyntheticSet
from edgekit.types import InputSpec, Preprocessing, Task

CLASSES = 4
SIZE = 12
SHORT = Schedule(epochs=8, steps=20, warmup=3, batch=32, classes=4, milestones=(0.75,))
NARROW = Making(latent=8, width=16, clusters=4)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small are faster so
    yield
    torch.set_num_threads(before)


class Small(nn.Module):
    """Three convolutions with BatchNorm and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 8, 16, 16)
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 3, stride=s, padding=1, bias=False)
            for i, o, s in zip(widths, widths[1:], (1, 2, 2), strict=False)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for o in widths[1:])
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return self.head(x.mean((2, 3)))


def pictures(count: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Smooth fields of one colour pattern for each class, in noise: an invented data set."""
    labels = torch.arange(count) % CLASSES
    fixed = torch.Generator().manual_seed(11)
    coarse = torch.randn(CLASSES, 3, 3, 3, generator=fixed)
    pattern = F.interpolate(coarse, (SIZE, SIZE), mode="bilinear")
    noise = torch.randn(count, 3, SIZE, SIZE, generator=draws)
    return (0.5 + 0.13 * pattern[labels] + 0.1 * noise).clamp(0, 1), labels


@pytest.fixture(scope="module")
def module() -> Small:
    draws = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Small()
    adam = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(80):
        x, y = pictures(64, draws)
        adam.zero_grad()
        F.cross_entropy(network(x), y).backward()
        adam.step()
    network.eval()
    x, y = pictures(256, draws)
    with torch.no_grad():
        assert float((network(x).argmax(1) == y).float().mean()) > 0.95
    return network


def captured(module: nn.Module, task: Task = Task.CLASSIFICATION) -> CapturedModel:
    return capture(
        module, [InputSpec("x", (1, 3, SIZE, SIZE))], task=task, preprocessing=Preprocessing()
    )


@pytest.fixture(scope="module")
def model(module: Small) -> CapturedModel:
    return captured(module)


@pytest.fixture(scope="module")
def made(model: CapturedModel) -> SyntheticSet:
    return ClusterQ(samples=48, schedule=SHORT, making=NARROW).synthesize(model)


def untrained_loss(model: CapturedModel) -> float:
    """Held-out statistics loss of a generator as it is initialised."""
    source = ImageSource(ClassNetwork.of(model, 4), NARROW, 0)
    return Objective(source.network, GDFQ).held_out(source.look(1, 4, 32))["held_out_bns"]


def test_training_reaches_the_stored_statistics_and_the_classes(
    made: SyntheticSet, model: CapturedModel
) -> None:
    history = made.facts["history"]
    selected = made.facts["selected"]
    assert [row["epoch"] for row in history] == list(range(1, 9))
    assert selected["held_out_bns"] < untrained_loss(model) / 3
    # one generator in four classes; a random one would have 25 %
    assert selected["held_out_accuracy"] > 0.9
    assert {"ce", "bns"} == set(history[0]) - {"epoch"} - {k for k in history[0] if "held" in k}
    assert {"sfda", "icv"} <= set(history[-1])


def test_made_set_is_of_all_classes_in_the_networks_domain(
    made: SyntheticSet, model: CapturedModel
) -> None:
    (images,) = made.inputs
    assert (made.engine, len(made)) == ("clusterq", 48)
    assert images.shape == (48, 3, SIZE, SIZE)
    assert images.dtype == torch.float32
    assert not images.requires_grad
    assert 0 <= float(images.min()) < 0.2 < 0.8 < float(images.max()) <= 1
    assert made.labels is not None
    assert torch.bincount(made.labels).tolist() == [12] * CLASSES
    agreed = model(images)[0].argmax(1) == made.labels
    assert float(agreed.float().mean()) > 0.85  # as on held-out images, +-1.5 deviations of 48


def test_selection_takes_the_epoch_with_the_smallest_held_out_loss(made: SyntheticSet) -> None:
    scores = {
        row["epoch"]: row["held_out_bns"] + row["held_out_ce"]
        for row in made.facts["history"]
        if row["epoch"] > SHORT.warmup
    }
    assert made.facts["selected_epoch"] == min(scores, key=lambda epoch: scores[epoch])


def test_same_seed_same_images(model: CapturedModel) -> None:
    engine = ClusterQ(samples=8, schedule=replace(SHORT, epochs=4, steps=3), making=NARROW)
    first, second = engine.synthesize(model), engine.synthesize(model)
    other = replace(engine, seed=1).synthesize(model)
    more = replace(engine, samples=16).synthesize(model)
    assert torch.equal(first.inputs[0], second.inputs[0])
    assert not torch.equal(first.inputs[0], other.inputs[0])
    assert torch.equal(first.inputs[0], more.inputs[0][:8])


def test_alignment_moves_each_class_to_its_centroid(model: CapturedModel) -> None:
    """Through the whole network: classes take over the statistics of classes of other images."""
    source = ImageSource(ClassNetwork.of(model, 4), NARROW, 0)
    GeneratorTraining(source, GDFQ, SHORT, 0).run(None, lambda *_: None)
    objective = Objective(source.network, Losses(ce=0.0, bns=0.0, icv=0.0, beta=0.0))
    objective.empty_centroids(CLASSES)
    images, labels = pictures(128, torch.Generator().manual_seed(5))
    seen = source.network.run([images])
    objective.set_centroids(
        Look(ClassBatch(labels, labels[:4], labels), seen.moments, seen.outputs[0])
    )

    def distance(index: int) -> Tensor:
        batch = source.batch(index, 64, 4)
        found = source.network.run(source.inputs(batch, stream(9, 0, index)))
        terms = objective.terms(found, source.logits(found), batch, stream(9, 1, index))
        assert set(terms.values) == {"sfda"}
        return objective.total(terms)

    before = float(distance(1000).detach())
    adam = torch.optim.Adam(source.generator.parameters(), lr=5e-3)
    for index in range(40):
        adam.zero_grad()
        distance(index).backward()
        adam.step()
    assert float(distance(1000).detach()) < before / 3


@pytest.mark.parametrize(
    ("losses", "terms"),
    [
        (GDFQ, {"ce", "bns"}),
        (BNS_ONLY, {"bns"}),
        (Losses(bns=0.0), {"ce", "sfda", "icv"}),
        (Losses(icv=0.0, beta=0.0), {"ce", "bns", "sfda"}),
        (Losses(sfda=0.0), {"ce", "bns", "icv"}),
    ],
)
def test_weight_zero_switches_a_loss_off(
    losses: Losses, terms: set[str], model: CapturedModel
) -> None:
    schedule = replace(SHORT, epochs=2, steps=2, warmup=1)
    made = ClusterQ(samples=4, losses=losses, schedule=schedule, making=NARROW).synthesize(model)
    row = made.facts["history"][-1]
    assert {name for name in row if "held" not in name} == terms | {"epoch"}
    assert (made.labels is None) == (losses.ce == 0)


def test_embedding_form_trains(model: CapturedModel) -> None:
    making = replace(NARROW, form=LabelForm.EMBEDDING)
    schedule = replace(SHORT, epochs=5)
    facts = ClusterQ(samples=4, schedule=schedule, making=making).synthesize(model).facts
    assert facts["selected"]["held_out_accuracy"] > 0.7


def test_early_stop_waits_for_the_lower_rate(model: CapturedModel) -> None:
    schedule = replace(SHORT, epochs=16, steps=1, lr=1e-9, milestones=(0.5,), patience=3)
    facts = ClusterQ(samples=4, schedule=schedule, making=NARROW).synthesize(model).facts
    assert facts["ended"] == "early stop"
    assert facts["steps"] == 11  # no progress at such a rate: three epochs from 8 on
    full = replace(schedule, patience=99)
    facts = ClusterQ(samples=4, schedule=full, making=NARROW).synthesize(model).facts
    assert (facts["ended"], facts["steps"]) == ("complete", 16)


# -- any network with BatchNorm -----------------------------------------------------------------


def test_clusters_stand_in_for_classes(module: Small) -> None:
    """The same network as an embedding: its clusters are found, and hit."""
    model = captured(module, Task.EMBEDDING)
    made = ClusterQ(samples=40, schedule=SHORT, making=NARROW).synthesize(model)
    assert (made.facts["classes_from"], made.facts["classes"]) == ("clusters", 4)
    history = made.facts["history"]
    assert "ce" not in history[SHORT.warmup - 1]  # nothing to aim at before the clusters are known
    assert {"ce", "sfda"} <= set(history[-1])
    # of four clusters that 100 steps had time for; a generator without aim would hit 25 %
    assert made.facts["selected"]["held_out_accuracy"] > 0.6
    assert made.facts["selected"]["held_out_bns"] < untrained_loss(model) / 2
    assert made.labels is not None
    assert set(made.labels.tolist()) == set(range(4))


def _conv(rank: int, channels: int) -> nn.Sequential:
    conv, norm = (nn.Conv1d, nn.BatchNorm1d) if rank == 1 else (nn.Conv2d, nn.BatchNorm2d)
    return nn.Sequential(
        conv(channels, 6, 3, padding=1), norm(6), nn.ReLU(), conv(6, 5, 3, padding=1), norm(5)
    )


class TwoInputs(nn.Module):
    """A picture, a vector and an id."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.table = _conv(2, 1), nn.Embedding(7, 5)
        self.vector = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))

    def forward(self, image: Tensor, vector: Tensor, ids: Tensor) -> Tensor:
        return self.image(image).mean((2, 3)) + self.vector(vector) + self.table(ids)


class FixedBatch(nn.Module):
    """Reshapes its input to a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.body = _conv(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.view(1, 2, 6, 7))


class Frames(nn.Module):
    """BatchNorm over all frames of all samples: no row of its own for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x.reshape(-1, 4))).reshape(x.shape[0], -1, 6)


ANY = {
    "one channel, not square": (_conv(2, 1), [(1, 1, 9, 14)]),
    "series": (_conv(1, 3), [(1, 3, 21)]),
    "vector": (nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6)), [(1, 5)]),
    "fixed batch": (FixedBatch(), [(1, 2, 6, 7)]),
    "frames": (Frames(), [(1, 3, 4)]),
}


@pytest.mark.parametrize("name", ANY)
def test_any_network_with_batch_norm(name: str) -> None:
    module, shapes = ANY[name]
    model = capture(module, [InputSpec(f"x{i}", shape) for i, shape in enumerate(shapes)])
    schedule = Schedule(epochs=3, steps=2, warmup=1, batch=8, classes=3)
    engine = ClusterQ(samples=10, batch=4, schedule=schedule, making=replace(NARROW, clusters=3))
    made = engine.synthesize(model)
    assert [tuple(v.shape) for v in made.inputs] == [(10, *shape[1:]) for shape in shapes]
    assert all(bool(v.isfinite().all()) for v in made.inputs)
    known = name != "frames"
    assert (made.facts["classes_from"] == "clusters") == known
    assert ("sfda" in made.facts["history"][-1]) == known
    assert bool(made.facts["notes"]) == (not known)
    assert made.notes[0].startswith("clusterq: 6 steps")
    statistics = observe_made(model, made, seed=0)
    assert (statistics.method, statistics.samples) == ("clusterq", 10)


def test_several_inputs_are_made_together() -> None:
    specs = [
        InputSpec("image", (1, 1, 6, 6)),
        InputSpec("vector", (1, 3)),
        InputSpec("ids", (1,), "int64"),
    ]
    model = capture(TwoInputs(), specs)
    schedule = Schedule(epochs=2, steps=2, warmup=1, batch=8, classes=3)
    made = ClusterQ(samples=10, schedule=schedule, making=NARROW).synthesize(model)
    assert [tuple(v.shape) for v in made.inputs] == [(10, 1, 6, 6), (10, 3), (10,)]
    assert made.inputs[2].dtype == torch.int64
    assert 0 <= int(made.inputs[2].min()) <= int(made.inputs[2].max()) < 7


def test_single_logit_is_two_classes() -> None:
    module = nn.Sequential(_conv(2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 1))
    model = capture(module, [InputSpec("x", (1, 3, 8, 8))], task=Task.CLASSIFICATION)
    schedule = Schedule(epochs=2, steps=2, warmup=1, batch=8)
    facts = ClusterQ(samples=4, schedule=schedule, making=NARROW).synthesize(model).facts
    assert (facts["classes_from"], facts["classes"]) == ("logits", 2)


# -- bad input ----------------------------------------------------------------------------------


def test_no_batch_norm_is_an_error_that_names_another_way() -> None:
    model = capture(nn.Conv2d(3, 2, 3), [InputSpec("x", (1, 3, 8, 8))])
    with pytest.raises(CalibrationError, match="no BatchNorm") as caught:
        ClusterQ().synthesize(model)
    assert "renorm" in caught.value.hint


def test_inputs_that_coincide_inside_are_one_class() -> None:
    module = _conv(2, 3)
    with torch.no_grad():
        for conv in (module[0], module[3]):
            conv.weight.zero_()  # blind: every input looks the same
    model = capture(module, [InputSpec("x", (1, 3, 8, 8))])
    schedule = Schedule(epochs=3, steps=2, warmup=1, batch=8)
    made = ClusterQ(samples=4, schedule=schedule, making=NARROW).synthesize(model)
    assert made.facts["classes"] == 1
    assert "one class" in made.facts["notes"][0]


def test_divergence_at_once_is_an_error() -> None:
    broken = capture(Small(), [InputSpec("x", (1, 3, SIZE, SIZE))], task=Task.CLASSIFICATION)
    for name, value in broken.graph.named_buffers():
        if name.endswith("running_mean"):
            value.fill_(math.inf)
    with pytest.raises(CalibrationError, match="NaN") as caught:
        ClusterQ(schedule=SHORT, making=NARROW).synthesize(broken)
    assert "renorm" in caught.value.hint


def test_divergence_later_keeps_the_best_generator(module: Small, model: CapturedModel) -> None:
    damaged = captured(copy.deepcopy(module))

    def damage(_text: str, fraction: float) -> None:
        if fraction > 0.5:
            for name, value in damaged.graph.named_buffers():
                if name.endswith("running_mean"):
                    value.fill_(math.nan)

    schedule = replace(SHORT, epochs=4, steps=2, warmup=0)
    engine = ClusterQ(samples=8, schedule=schedule, making=NARROW)
    made = engine.synthesize(damaged, progress=damage)
    assert (made.facts["ended"], made.facts["selected_epoch"]) == ("not finite", 2)
    assert "the generator of epoch 2 is used" in made.facts["notes"][0]
    assert bool(made.inputs[0].isfinite().all())


def test_too_little_memory_is_an_error_after_two_smaller_batches(model: CapturedModel) -> None:
    huge = replace(SHORT, batch=1 << 44)  # no machine holds the latents of 17 trillion images
    with pytest.raises(CalibrationError, match="memory does not suffice") as caught:
        ClusterQ(schedule=huge, making=NARROW).synthesize(model)
    assert "renorm" in caught.value.hint


def test_short_memory_halves_the_batch(
    model: CapturedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ClassNetwork.run

    def short(self: ClassNetwork, inputs: tuple[Tensor, ...]) -> object:
        if len(inputs[0]) > 20:
            torch.empty(1 << 60)  # what torch raises by itself
        return run(self, inputs)

    monkeypatch.setattr(ClassNetwork, "run", short)
    schedule = replace(SHORT, epochs=2, steps=2, warmup=1)
    made = ClusterQ(samples=40, schedule=schedule, making=NARROW).synthesize(model)
    assert (made.facts["batch"], made.facts["steps"], len(made)) == (16, 4, 40)
    assert "batches of 16 in place of 32" in made.facts["notes"][0]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Losses(sfda=-1.0),
        lambda: Losses(beta=1.5),
        lambda: Losses(ce=0.0, bns=0.0, sfda=0.0, icv=0.0),
        lambda: Losses(icv=math.nan),
        lambda: Schedule(epochs=0),
        lambda: Schedule(batch=1),
        lambda: Schedule(lr=0.0),
        lambda: Making(clusters=1),
        lambda: Making(augment=2.0),
        lambda: ClusterQ(samples=0),
    ],
)
def test_options_are_checked(wrong: object) -> None:
    with pytest.raises(ConfigError, match="clusterq"):
        wrong()  # type: ignore[operator]


def test_statistics_loss_cannot_be_off_without_logits(module: Small) -> None:
    with pytest.raises(CalibrationError, match="without class logits"):
        ClusterQ(losses=Losses(bns=0.0)).synthesize(captured(module, Task.OTHER))


def test_progress_tells_epoch_losses_and_time(model: CapturedModel) -> None:
    told: list[tuple[str, float]] = []
    schedule = replace(SHORT, epochs=3, steps=2, warmup=1)
    engine = ClusterQ(samples=4, schedule=schedule, making=NARROW)
    engine.synthesize(model, progress=lambda text, done: told.append((text, done)))
    fractions = [done for _, done in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert told[0][0].startswith("clusterq 1/3: bns ")
    assert "sfda" in told[-2][0]
    assert told[-2][0].endswith("0 s left")
