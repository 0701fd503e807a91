"""The DCAP family: sizes of the paper, the pooling against its own definition, the teacher."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from edgekit.capture import capture  # noqa: E402
from edgekit.errors import ConfigError  # noqa: E402
from edgekit.graph import OpKind, op_kind, op_name  # noqa: E402
from edgekit.loading import LoadedModel  # noqa: E402
from edgekit.models.dcap import (  # noqa: E402
    DCAP_SMALL,
    AttentivePooling,
    dcap,
    dcap_small,
    seeded_dcap_weights,
)
from edgekit.types import Task  # noqa: E402


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def randomised(pooling: AttentivePooling) -> AttentivePooling:
    """Undo the even start: everything in the scorer is to matter."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in pooling.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return pooling


@pytest.mark.parametrize(
    ("backbone", "trunk", "scorer", "classifier"),
    [("resnet12", 7_997_824, 73_745, 32_832), ("conv4", 112_960, 9_233, 4_160)],
)
def test_parameters_of_the_paper(backbone: str, trunk: int, scorer: int, classifier: int) -> None:
    with torch.device("meta"):
        network = dcap(backbone)
    assert count(network.backbone) == trunk
    assert count(network.pooling) == scorer
    assert count(network.classifier) == classifier


def test_small_one_fits_in_the_package() -> None:
    assert 4 * count(dcap_small()) <= 2_000_000


@pytest.mark.parametrize(("backbone", "width"), [("resnet12", 512), ("conv4", 64)])
def test_descriptors_lie_on_the_grid_of_the_paper(backbone: str, width: int) -> None:
    with torch.device("meta"):
        network = dcap(backbone)
        assert network.descriptors(torch.zeros(2, 3, 84, 84)).shape == (2, width, 5, 5)
        assert network(torch.zeros(2, 3, 84, 84))["embedding"].shape == (2, width)


def test_unknown_backbone() -> None:
    with pytest.raises(ConfigError, match="resnet12 or conv4"):
        dcap("resnet18")
    with pytest.raises(ConfigError, match="base_classes=0"):
        dcap_small(base_classes=0)


def test_fresh_pooling_is_the_global_average() -> None:
    x = torch.randn(3, 8, 5, 5, generator=torch.Generator().manual_seed(1))
    pooled = AttentivePooling(8, 5, 5)(x)
    # float32 sums of 25 terms of size 1
    torch.testing.assert_close(pooled, x.mean((2, 3)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(5, 5), (4, 4), (1, 3), (2, 2)])
def test_split_scorer_is_the_convolution_of_the_concatenation(size: tuple[int, int]) -> None:
    """Border included, where the zero padding hides part of the pooled half."""
    pooling = randomised(AttentivePooling(6, *size))
    x = torch.randn(4, 6, *size, generator=torch.Generator().manual_seed(2))
    spread = x.mean((2, 3), keepdim=True).expand_as(x)
    scores = pooling.score(F.leaky_relu(pooling.joint(torch.cat((x, spread), 1)), 0.1))
    expected = scores.flatten(1).softmax(1).reshape(4, *size)
    weights, expected = pooling.weights(x).detach(), expected.detach()
    # the same products, summed in another order
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)
    # and the test would see a lost border: the weights are far from even
    assert float(weights.std()) > 0.05 or math.prod(size) < 5
    by_hand = torch.stack([(w * v).sum((1, 2)) for w, v in zip(weights, x, strict=True)])
    torch.testing.assert_close(pooling(x), by_hand, rtol=1e-5, atol=1e-5)


def test_gradients_reach_both_halves_of_the_scorer() -> None:
    pooling = randomised(AttentivePooling(4, 3, 3))
    pooling(torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(3))).sum().backward()
    gradient = pooling.joint.weight.grad
    assert gradient is not None
    assert all(float(half.abs().max()) > 0 for half in gradient.split(4, 1))


def test_captured_graph_neither_spreads_nor_joins() -> None:
    captured = capture(dcap_small(), DCAP_SMALL.inputs, task=Task.EMBEDDING)
    kinds = [op_kind(node) for node in captured.graph.graph.nodes]
    names = [op_name(node) for node in captured.graph.graph.nodes]
    assert OpKind.CONCAT not in kinds
    assert "expand" not in names
    assert kinds.count(OpKind.LINEAR) == 1  # the pooled half, its weight a constant
    assert kinds.count(OpKind.CONV) == 6
    assert captured.batch
    assert [output.name for output in captured.outputs] == ["embedding"]


def test_teacher_has_the_classes_and_the_network_does_not() -> None:
    network = dcap_small(base_classes=7)
    loaded = LoadedModel(
        network, DCAP_SMALL.inputs, None, Task.EMBEDDING, None, "zoo:dcap_small", "checkpoint", ""
    )
    teacher, own = loaded.capture_teacher(), loaded.capture()
    assert teacher is not None
    assert teacher.task is Task.CLASSIFICATION
    assert [output.shape for output in teacher.outputs] == [(1, 7)]
    assert "classifier.weight" not in {
        str(node.target) for node in own.graph.graph.nodes if node.op == "get_attr"
    }
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    network.eval()
    with torch.no_grad():
        dense = network.dense_logits(network.descriptors(image))
    # a linear layer of the mean is the mean of the linear layer, up to float32
    torch.testing.assert_close(teacher(image)[0], dense.mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_other_networks_have_no_teacher() -> None:
    loaded = LoadedModel(
        nn.Conv2d(3, 4, 1), DCAP_SMALL.inputs, None, Task.OTHER, None, "", "state_dict", ""
    )
    assert loaded.capture_teacher() is None


def test_seeded_weights_attend() -> None:
    network = dcap()
    network.load_state_dict(seeded_dcap_weights())
    network.eval()
    image = torch.randn(1, 3, 84, 84, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        descriptors = network.descriptors(image)
        weights = network.pooling.weights(descriptors)
    assert torch.isfinite(descriptors).all()
    assert float(weights.max()) > 2.0 / 25.0  # an even weight is 1/25
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-5)
