"""Classes: clusters against brute force, logits, and batches that visit all classes."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from edgekit.calibration._classes import ClusterClasses, LogitClasses, has_logits
from edgekit.calibration._draws import TRAIN, class_batch, stream
from edgekit.calibration._kmeans import kmeans
from edgekit.calibration._teacher import Moments, NormLayer, TeacherPass
from edgekit.types import Task


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def error(points: Tensor, assigned: Tensor) -> float:
    parts = [points[assigned == c] for c in assigned.unique()]
    return sum(float((p - p.mean(0)).square().sum()) for p in parts)


@pytest.mark.parametrize("seed", range(3))
def test_kmeans_finds_the_best_partition_of_few_points(seed: int) -> None:
    points = torch.randn(7, 2, generator=draws(seed))
    best = min(error(points, torch.tensor(p)) for p in itertools.product(range(3), repeat=7))
    centres, assigned = kmeans(points, 3, draws(seed))
    # the same partition, summed in float32
    assert error(points, assigned) == pytest.approx(best, rel=1e-5)
    for c in range(3):
        assert torch.allclose(centres[c], points[assigned == c].mean(0), atol=1e-6)


def test_kmeans_separates_clear_clusters() -> None:
    truth = torch.arange(120) % 6
    points = 20 * torch.eye(6)[truth] + torch.randn(120, 6, generator=draws())
    _, assigned = kmeans(points, 6, draws())
    assert all(len(assigned[truth == c].unique()) == 1 for c in range(6))
    assert len(assigned.unique()) == 6


def test_kmeans_has_no_more_clusters_than_distinct_points() -> None:
    points = torch.tensor([[1.0], [2.0], [1.0], [2.0], [1.0]])
    centres, assigned = kmeans(points, 4, draws())
    assert sorted(centres.flatten().tolist()) == [1.0, 2.0]
    assert centres[assigned].tolist() == points.tolist()
    centres, assigned = kmeans(torch.ones(5, 2), 3, draws())
    assert centres.tolist() == [[1.0, 1.0]]
    assert assigned.tolist() == [0] * 5


def test_kmeans_is_repeatable() -> None:
    points = torch.randn(50, 3, generator=draws(3))
    first, second = (kmeans(points, 7, draws(1)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def seen(first: Tensor, output: Tensor | None = None) -> TeacherPass:
    output = first if output is None else output
    return TeacherPass((output,), (Moments(first, first.square()),), first)


def test_cluster_scores_are_distances_in_stored_units() -> None:
    norm = NormLayer("norm", torch.tensor([5.0, -5.0]), torch.tensor([4.0, 400.0]))
    truth = torch.arange(60) % 3
    corners = torch.tensor([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0]])  # in stored deviations
    features = corners[truth] + 0.5 * torch.randn(60, 2, generator=draws())
    value = (norm.mean + features * norm.variance.sqrt()).requires_grad_()
    classes = ClusterClasses(3, (norm,), 0)
    assert (classes.ready, classes.count) == (False, 3)
    classes.fit(seen(value).moments, draws())
    assert (classes.ready, classes.count) == (True, 3)
    scores = classes.logits(seen(value))
    found = scores.argmax(1)
    assert all(len(found[truth == c].unique()) == 1 for c in range(3))
    # of its own class, a sample's score is minus its squared distance in units of the mean one
    assert float(scores.detach().gather(1, found[:, None]).mean()) == pytest.approx(-1.0, rel=1e-3)
    # squared deviations 2 * 0.25 * (19 / 20); the corners lie 8 apart: (64 + 0.5) / 0.5
    far = scores.detach()[truth == 1][:, int(found[0])].mean()
    assert float(far) == pytest.approx(-64.5 / 0.475, rel=0.2)
    torch.nn.functional.cross_entropy(scores, found).backward()
    assert value.grad is not None
    assert bool(value.grad.isfinite().all())


def test_clusters_survive_a_checkpoint() -> None:
    norm = NormLayer("norm", torch.zeros(2), torch.ones(2))
    value = torch.randn(40, 2, generator=draws())
    first, second = (ClusterClasses(4, (norm,), 0) for _ in range(2))
    second.restore(first.state())
    assert not second.ready
    first.fit(seen(value).moments, draws())
    second.restore(first.state())
    assert torch.equal(first.logits(seen(value)), second.logits(seen(value)))


def test_logits_of_classifiers() -> None:
    output = torch.randn(4, 3, generator=draws())
    assert torch.equal(LogitClasses(3).logits(seen(output, output)), output)
    single = torch.tensor([[2.0], [-1.0]])
    binary = LogitClasses(1)
    assert binary.count == 2
    assert binary.logits(seen(single, single)).argmax(1).tolist() == [1, 0]
    assert has_logits(Task.CLASSIFICATION, output, 4)
    assert not has_logits(Task.EMBEDDING, output, 4)
    assert not has_logits(Task.CLASSIFICATION, torch.zeros(4, 3, 8, 8), 4)  # segmentation
    assert not has_logits(Task.CLASSIFICATION, torch.zeros(8, 3), 4)  # rows are not samples


@pytest.mark.parametrize(("classes", "per_batch", "size"), [(10, 10, 64), (10, 4, 22), (7, 3, 9)])
def test_batches_visit_all_classes_equally_often(classes: int, per_batch: int, size: int) -> None:
    visits = torch.zeros(classes)
    for index in range(classes):  # a whole number of decks
        batch = class_batch(3, classes, per_batch, size, index)
        assert len(batch.labels) == size
        assert torch.equal(batch.classes[batch.slots], batch.labels)
        assert len(batch.classes.unique()) == len(batch.classes) <= per_batch
        counts = torch.bincount(batch.slots, minlength=len(batch.classes))
        full = len(batch.classes) == per_batch  # where two decks meet, a class may come twice
        assert not full or int(counts.max() - counts.min()) <= 1
        visits += torch.bincount(batch.labels[:per_batch], minlength=classes)
    assert visits.tolist() == [float(per_batch)] * classes


def test_draws_depend_on_seed_purpose_and_index_alone() -> None:
    numbers = {
        float(torch.rand((), generator=stream(seed, purpose, index)))
        for seed, purpose, index in itertools.product(range(3), range(6), range(50))
    }
    assert len(numbers) == 900
    again = torch.rand((), generator=stream(2, TRAIN, 7))
    assert float(again) == float(torch.rand((), generator=stream(2, TRAIN, 7)))
