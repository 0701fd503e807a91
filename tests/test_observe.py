"""Statistics of a pass against numpy and explicit loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.capture import CapturedModel, capture
from edgekit.observe import channel_axis, observe, with_notes
from edgekit.types import InputSpec


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 5, 3, stride=2), nn.BatchNorm2d(5)
        self.plain, self.head = nn.BatchNorm2d(5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        return self.head(self.plain(x).amax((2, 3)))


def batches(*sizes: int, shape: tuple[int, ...] = (3, 9, 8)) -> list[tuple[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(size, *shape, generator=generator),) for size in sizes]


def network() -> CapturedModel:
    torch.manual_seed(0)
    return capture(Network(), [InputSpec("x", (1, 3, 9, 8))])


def test_statistics_of_every_activation_equal_numpy() -> None:
    torch.manual_seed(0)
    module = Network().eval()
    model = capture(module, [InputSpec("x", (1, 3, 9, 8))])
    fed = batches(4, 2)
    seen: list[int] = []
    statistics = observe(model, fed, method="m", generator=torch.Generator(), on_batch=seen.append)
    assert seen == [1, 2]
    assert (statistics.samples, statistics.method) == (6, "m")
    # the convolution's own result is missing: it disappears when its BatchNorm is folded; the relu
    # stays although only a BatchNorm reads it, because that one cannot be folded
    assert set(statistics.tensors) == {
        "x", "batch_norm", "relu", "batch_norm_1", "max_pool2d", "flatten", "linear",
    }  # fmt: skip
    with torch.no_grad():
        x = torch.cat([batch for (batch,) in fed])
        relu = module.norm(module.conv(x)).relu()
        linear = module(x)
    for name, value, axes in (("x", x, (0, 2, 3)), ("relu", relu, (0, 2, 3)), ("linear", linear, (0,))):  # fmt: skip  # noqa: E501
        found, expected = statistics.tensors[name], value.numpy()
        assert found.rule == "m"
        # float32 kernels on batches of another size: a few rounding steps of 1e-7
        assert found.channel_mean.numpy() == pytest.approx(expected.mean(axes), abs=1e-5)
        assert found.channel_minimum.numpy() == pytest.approx(expected.min(axes), abs=1e-5)
        assert found.channel_maximum.numpy() == pytest.approx(expected.max(axes), abs=1e-5)
        assert (found.minimum, found.maximum) == pytest.approx(
            (expected.min(), expected.max()), abs=1e-5
        )


def test_override_replaces_one_node() -> None:
    model = network()
    statistics = observe(
        model,
        batches(2),
        method="m",
        generator=torch.Generator(),
        overrides={"relu": lambda node, args: torch.full_like(args[0], 7.0)},  # type: ignore[call-overload]
    )
    assert statistics.tensors["relu"].channel_mean.tolist() == [7.0] * 5
    assert statistics.tensors["batch_norm"].maximum < 7.0


def moments_by_loops(x: np.ndarray, conv: nn.Conv2d) -> np.ndarray:
    """``E[u u^T]`` over samples and positions, one window at a time."""
    kernel, stride, dilation = conv.kernel_size, conv.stride, conv.dilation
    if conv.padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        before = [total // 2 for total in totals]
        after = [total - first for total, first in zip(totals, before, strict=True)]
    else:
        before = after = [0, 0] if conv.padding == "valid" else [int(p) for p in conv.padding]
    x = np.pad(x, ((0, 0), (0, 0), (before[0], after[0]), (before[1], after[1])))
    per_group = x.shape[1] // conv.groups
    rows = (x.shape[2] - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    columns = (x.shape[3] - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    size = per_group * kernel[0] * kernel[1]
    total = np.zeros((conv.groups, size, size))
    for n, g, i, j in np.ndindex(x.shape[0], conv.groups, rows, columns):
        window = x[
            n,
            g * per_group : (g + 1) * per_group,
            i * stride[0] : i * stride[0] + dilation[0] * (kernel[0] - 1) + 1 : dilation[0],
            j * stride[1] : j * stride[1] + dilation[1] * (kernel[1] - 1) + 1 : dilation[1],
        ].reshape(-1)
        total[g] += np.outer(window, window)
    return total / (x.shape[0] * rows * columns)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3),
        nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(1, 0)),
        nn.Conv2d(4, 6, 3, dilation=2, padding=2),
        nn.Conv2d(4, 6, 3, groups=2, padding=1),
        nn.Conv2d(4, 4, 3, groups=4, stride=2),
        nn.Conv2d(4, 6, (3, 5), padding="same", dilation=(2, 1)),
        nn.Conv2d(4, 6, 3, padding="valid"),
        nn.Conv2d(4, 6, 1),
    ],
    ids=str,
)
def test_second_moments_equal_loops(conv: nn.Conv2d) -> None:
    model = capture(conv, [InputSpec("x", (1, 4, 7, 6))])
    fed = batches(3, 1, shape=(4, 7, 6))  # uneven: every sample counts the same
    statistics = observe(
        model, fed, method="m", generator=torch.Generator(), second_moments=["conv2d"]
    )
    expected = moments_by_loops(np.concatenate([x.numpy() for (x,) in fed]).astype(float), conv)
    found = statistics.second_moments["conv2d"]
    assert found.shape == expected.shape
    # float32 sums of about 200 products near 1
    assert found.numpy() == pytest.approx(expected, abs=1e-5)
    weight = conv.weight.detach().flatten(1).double().unflatten(0, (conv.groups, -1))
    # what the matrix is for: the mean square of an output without its bias is w^T E[u u^T] w
    energy = torch.einsum("gok,gkl,gol->go", weight, found.double(), weight).flatten()
    with torch.no_grad():
        y = torch.cat([conv(x) for (x,) in fed]).double()
    assert conv.bias is not None
    y = y - conv.bias.detach().double().reshape(1, -1, 1, 1)
    assert torch.allclose(energy, y.square().mean((0, 2, 3)), rtol=1e-4)


@pytest.mark.parametrize("shape", [(5,), (3, 5)])
def test_second_moments_of_linear_layers(shape: tuple[int, ...]) -> None:
    model = capture(nn.Linear(5, 2), [InputSpec("x", (1, *shape))])
    fed = batches(3, 2, shape=shape)
    found = observe(
        model, fed, method="m", generator=torch.Generator(), second_moments=["linear"]
    ).second_moments["linear"]
    rows = np.concatenate([x.numpy().reshape(-1, 5) for (x,) in fed])
    assert found.shape == (1, 5, 5)
    assert found[0].numpy() == pytest.approx(rows.T @ rows / len(rows), abs=1e-5)


def test_channel_axis_follows_the_operators() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.conv(x)).transpose(1, 2))

    graph = capture(Mixed(), [InputSpec("x", (1, 3, 8))]).graph.graph
    axes = {node.name: channel_axis(node) for node in graph.nodes if node.op == "call_function"}
    assert axes == {"conv1d": 1, "batch_norm": 1, "transpose": -1, "linear": -1}


def test_notes_are_added() -> None:
    statistics = observe(network(), batches(1), method="m", generator=torch.Generator())
    assert statistics.notes == ()
    assert with_notes(with_notes(statistics, "a"), "b").notes == ("a", "b")
