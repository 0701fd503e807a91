"""Images without end from a generator that goes on learning: fresh, labelled, resumable."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from edgekit.calibration.clusterq import ClusterQ, Making, Schedule
from edgekit.capture import CapturedModel, capture
from edgekit.synthetic import InputStream
from edgekit.types import InputSpec, Task

ENGINE = ClusterQ(
    samples=16,
    schedule=Schedule(epochs=3, steps=4, warmup=2, batch=16, classes=3),
    making=Making(latent=6, width=8, clusters=3),
)


def network(task: Task) -> CapturedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(
            *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
            *(nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
        )
    return capture(module, [InputSpec("x", (1, 3, 8, 8))], task=task)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stream(task: Task = Task.CLASSIFICATION) -> InputStream:
    made = ENGINE.synthesize(network(task)).stream
    assert made is not None
    return made


def images(of: InputStream, batches: int) -> list[Tensor]:
    return [of.next()[0][0] for _ in range(batches)]


def test_every_batch_is_fresh_and_of_the_classes_that_it_was_made_for() -> None:
    source = stream()
    (first,), labels = source.next()
    (second,), _ = source.next()
    assert first.shape == second.shape == (16, 3, 8, 8)
    assert labels is not None
    assert set(labels.tolist()) == {0, 1, 2}
    assert not first.requires_grad
    distances = (first.flatten(1)[:, None] - second.flatten(1)).abs().amax(2)
    assert float(distances.min()) > 0


def test_the_generator_learns_on_between_batches() -> None:
    source = stream()
    before = source.held_out(16)[0]
    source.next()
    assert not torch.equal(source.held_out(16)[0], before)  # of the same draws


def test_inputs_held_out_are_of_other_draws() -> None:
    source = stream()
    held = source.held_out(20)[0]
    assert held.shape == (32, 3, 8, 8)  # whole batches
    for batch in images(source, 3):
        distances = (held.flatten(1)[:, None] - batch.flatten(1)).abs().amax(2)
        assert float(distances.min()) > 0


def test_clusters_are_no_classes_of_the_network() -> None:
    assert stream(Task.OTHER).next()[1] is None


def test_a_state_goes_on_where_it_was_taken() -> None:
    source, again = stream(), stream()
    source.held_out(16)  # looking changes nothing
    images(source, 2)
    again.restore(source.state())
    for found, wanted in zip(images(again, 3), images(source, 3), strict=True):
        assert torch.equal(found, wanted)


def test_the_set_is_written_without_its_stream() -> None:
    made = ENGINE.synthesize(network(Task.CLASSIFICATION))
    assert replace(made, stream=None) == made
    assert "stream" not in repr(made)
