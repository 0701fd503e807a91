"""Training of DCAP: its losses against loops, its two stages, and going on after a kill."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from edgekit.architecture import parse_arch  # noqa: E402
from edgekit.errors import ConfigError  # noqa: E402
from edgekit.few_shot import Metric, prototypes, scores  # noqa: E402
from edgekit.models.dcap import Backbone, ConvBlock, Dcap  # noqa: E402
from edgekit.training.class_images import ClassImages, FewShotData  # noqa: E402
from edgekit.training.dcap import DcapTraining  # noqa: E402
from edgekit.training.dcap_losses import (  # noqa: E402
    dense_cross_entropy,
    episode_loss,
    episode_scores,
)
from edgekit.training.few_shot import few_shot_training  # noqa: E402
from edgekit.training.few_shot_options import FewShotOptions, Pooling  # noqa: E402
from edgekit.training.loop import Budget, train  # noqa: E402
from edgekit.types import Preprocessing  # noqa: E402

SIDE = 16
CPU = torch.device("cpu")
OPTIONS = FewShotOptions(batch=8, lr=0.02, tuning=0.5, ways=3, queries=3, shift=1)


def coloured(classes: int, seed: int) -> ClassImages:
    """Noise around one colour for each class."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(40, 215, (classes, 3))

    def read(index: int) -> np.ndarray:
        noise = np.random.default_rng([seed, index]).integers(-40, 41, (SIDE, SIDE, 3))
        pixels: np.ndarray = (colours[index // 8] + noise).astype(np.uint8)
        return pixels

    names = tuple(map(str, range(classes)))
    return ClassImages(names, np.repeat(np.arange(classes), 8), SIDE, read)


DATA = FewShotData(coloured(6, 0), coloured(4, 1), coloured(4, 2), True, "colours", "colours")


def made(options: FewShotOptions = OPTIONS, seed: int = 0) -> DcapTraining:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Dcap(Backbone(ConvBlock, (8, 12)), SIDE, 6)
    preprocessing = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return DcapTraining(network, DATA, preprocessing, options, seed=seed, device=CPU)


def run(task: DcapTraining, begin: int, end: int, total: int) -> dict[str, float]:
    losses: dict[str, float] = {}
    for index in range(begin, end):
        losses = dict(task.step(index, index / total))
    return losses


def test_dense_cross_entropy_is_the_mean_over_places() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(3, 5, 2, 4, generator=generator), torch.tensor([4, 0, 2])
    total = 0.0
    for n in range(3):
        for h in range(2):
            for w in range(4):
                row = logits[n, :, h, w].double()
                total += float(torch.logsumexp(row, 0) - row[labels[n]])
    # float32 against float64
    assert float(dense_cross_entropy(logits, labels)) == pytest.approx(total / 24, rel=1e-6)


@pytest.mark.parametrize("metric", list(Metric))
def test_scores_are_those_of_the_device(metric: Metric) -> None:
    rng = np.random.default_rng(0)
    support, query = rng.normal(size=(4, 2, 6)), rng.normal(size=(9, 6))
    found = episode_scores(torch.from_numpy(support), torch.from_numpy(query), metric)
    expected = scores(query, prototypes(support), metric)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_temperature_multiplies_the_cosine_only() -> None:
    rng = np.random.default_rng(1)
    support, query = (torch.from_numpy(rng.normal(size=s)) for s in ((3, 1, 4), (5, 4)))
    ten = torch.tensor(10.0, dtype=torch.float64)
    plain, hot = (episode_scores(support, query, Metric.COSINE, t) for t in (None, ten))
    torch.testing.assert_close(hot, 10.0 * plain)
    same = [episode_scores(support, query, Metric.PROJECTION, t) for t in (None, ten)]
    torch.testing.assert_close(*same)


def test_episode_loss_wants_the_class_of_each_query() -> None:
    support = 20.0 * torch.eye(3)[:, None, :]
    query = support.expand(-1, 2, -1)
    assert float(episode_loss(support, query, Metric.PROJECTION, None)) < 1e-6
    wrong = query.roll(1, 0)
    assert float(episode_loss(support, wrong, Metric.PROJECTION, None)) > 10.0


def test_stage_2_starts_from_everything_and_holds_the_classifier() -> None:
    task = made()
    assert set(run(task, 0, 4, 8)) == {"classes"}
    before = task.weights()
    assert float(before["pooling.score.weight"].abs().max()) == 0.0  # stage 1 pools evenly
    assert set(run(task, 4, 8, 8)) == {"episodes", "support"}
    after = task.weights()
    for name in ("classifier.weight", "classifier.bias"):
        assert torch.equal(before[name], after[name])
    for name in ("pooling.score.weight", "backbone.blocks.0.conv.weight"):
        assert not torch.equal(before[name], after[name])
    # running statistics went on from those of stage 1: no reset between
    batches = "backbone.tail.num_batches_tracked"
    assert (int(before[batches]), int(after[batches])) == (4, 8)


def test_stored_norms_stay_in_stage_2_if_asked() -> None:
    task = made(dataclasses.replace(OPTIONS, batch_norms=False))
    run(task, 0, 4, 8)
    before = task.weights()["backbone.tail.running_mean"]
    run(task, 4, 8, 8)
    assert torch.equal(task.weights()["backbone.tail.running_mean"], before)


def test_baseline_pools_evenly_to_the_end() -> None:
    task = made(dataclasses.replace(OPTIONS, dense=False, pooling=Pooling.GAP))
    run(task, 0, 8, 8)
    assert float(task.weights()["pooling.score.weight"].abs().max()) == 0.0
    indices = np.arange(3)
    network, images = task._network.eval(), task._input(DATA.novel.pictures(indices))
    with torch.no_grad():
        expected = network.descriptors(images).mean((2, 3)).numpy()
    # float32 sums over 16 places
    np.testing.assert_allclose(task.embeddings(DATA.novel, indices), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cut", [3, 6])
def test_going_on_ends_in_the_same_weights(cut: int) -> None:
    """Cut within either stage."""
    options = dataclasses.replace(OPTIONS, metric=Metric.COSINE)
    whole = made(options)
    run(whole, 0, 8, 8)
    first = made(options)
    run(first, 0, cut, 8)
    second = made(options, seed=0)
    second.restore(first.state())
    run(second, cut, 8, 8)
    for name, tensor in whole.weights().items():
        assert torch.equal(tensor, second.weights()[name]), name
    assert torch.equal(whole.state()["temperature"], second.state()["temperature"])


def test_input_is_normalized_as_on_the_device() -> None:
    from edgekit.preprocess import preprocess

    picture = DATA.base.pictures([0])
    expected = preprocess(picture[0], Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))
    np.testing.assert_allclose(made()._input(picture)[0].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_it_learns() -> None:
    task = made(dataclasses.replace(OPTIONS, tuning=0.3))
    trained = train(task, Budget(steps=40))
    # colours around six centres tell four new ones apart; chance is 33 %
    assert trained.score > 60.0
    assert trained.weights["classifier.weight"].shape == (6, 12)


@pytest.mark.parametrize(
    "setting", ["batch=1", "tuning=1.5", "ways=1", "lr=0", "pooling=max", "shots=0", "shift=-1"]
)
def test_bad_settings(setting: str) -> None:
    architecture = parse_arch("zoo:dcap_small")
    with pytest.raises(ConfigError):
        few_shot_training(architecture, None, seed=0, device=CPU, settings=[setting])


def test_too_many_shots_for_the_data() -> None:
    with pytest.raises(ConfigError, match="base classes: class 0 has 8 images, too few"):
        made(dataclasses.replace(OPTIONS, shots=6))


def test_classifier_must_have_the_base_classes() -> None:
    architecture = parse_arch("zoo:dcap_small(base_classes=10)")
    with pytest.raises(ConfigError, match="10 base classes, the data has 64"):
        few_shot_training(architecture, None, seed=0, device=CPU, settings=[])


def test_missing_data(tmp_path: Path) -> None:
    architecture = parse_arch("zoo:dcap_small")
    with pytest.raises(ConfigError, match="does not exist"):
        few_shot_training(architecture, tmp_path / "no", seed=0, device=CPU, settings=[])


def test_gap_loss_is_that_of_the_average() -> None:
    task = made(dataclasses.replace(OPTIONS, dense=False))
    x = torch.randn(4, 12, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = np.array([0, 1, 2, 3])
    network = task._network
    assert isinstance(network.classifier, nn.Linear)
    expected = F.cross_entropy(network.classifier(x.mean((2, 3))), torch.from_numpy(labels))
    torch.testing.assert_close(task._class_loss(x, labels, dense=False), expected)
    assert not torch.isclose(task._class_loss(x, labels, dense=True), expected, rtol=1e-6)
