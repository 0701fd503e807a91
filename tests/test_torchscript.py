"""TorchScript archives: converted where torch can, refused with a way on where it cannot."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the host part needs the extra 'torch'")

from torch import Tensor, nn  # noqa: E402

from edgekit.capture import capture  # noqa: E402
from edgekit.errors import ConfigError, LoadError  # noqa: E402
from edgekit.loading import load  # noqa: E402
from edgekit.options import parse_input  # noqa: E402
from edgekit.types import InputSpec  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.heads = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 2)])
        self(torch.randn(8, 3, 8, 8) * 3 + 1)
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu_(self.norm(self.conv(image)))
        x = nn.functional.max_pool2d(x, 2).mean((2, 3))
        for head in self.heads:
            x = head(x)
        return x


class Weird(nn.Module):
    """Depends on the values of its input, which no captured graph can."""

    def forward(self, x: Tensor) -> Tensor:
        while bool(x.sum() > 1):
            x = x / 2
        return x


class Flattening(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu().reshape(1, -1)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def save(network: nn.Module, *traced: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script: Any = (
            torch.jit.trace(network, traced, strict=False) if traced else torch.jit.script(network)
        )
        torch.jit.save(script, "net.pt")


@pytest.mark.parametrize("how", ["traced", "scripted"])
def test_network_of_the_archive(how: str) -> None:
    network = Net()
    save(network, *([torch.randn(1, 3, 8, 8)] if how == "traced" else []))
    loaded = load("net.pt", inputs=[parse_input("1x3x8x8")])
    assert loaded.inputs == (InputSpec("image", (1, 3, 8, 8)),)
    assert (loaded.source, loaded.arch) == ("torchscript", "TorchScript")
    captured = capture(loaded.module, loaded.inputs)
    assert captured.batch
    nodes = captured.graph.graph.nodes
    assert [node for node in nodes if node.target is torch.ops.aten.batch_norm.default]
    image = torch.randn(3, 3, 8, 8)
    # The same kernels run; the conversion writes the same operators.
    assert torch.allclose(captured(image)[0], network(image), atol=1e-6)


def test_shape_is_asked_for_by_the_name_of_the_input() -> None:
    save(Net())
    with pytest.raises(ConfigError, match="the shape of input image is not known"):
        load("net.pt")


def test_batch_that_is_written_into_the_code() -> None:
    save(Flattening(), torch.randn(1, 4))
    loaded = load("net.pt", inputs=[parse_input("1x4")])
    assert not capture(loaded.module, loaded.inputs).batch


def test_what_torch_cannot_convert_gets_a_way_on() -> None:
    save(Weird())
    with pytest.raises(LoadError, match="this TorchScript network cannot be converted") as caught:
        load("net.pt", inputs=[parse_input("1x4")])
    assert "torch.export.save(torch.export.export(" in caught.value.hint
    assert "--arch" in caught.value.hint


def test_layer_without_a_forward_pass_of_its_own() -> None:
    save(nn.LSTM(4, 6))
    with pytest.raises(LoadError, match="has no forward pass"):
        load("net.pt", inputs=[parse_input("1x5x4")])


def test_weights_alone_with_arch() -> None:
    network = nn.Linear(3, 2)
    save(network)
    loaded = load("net.pt", arch="torch.nn:Linear(3, 2)", inputs=[parse_input("1x3")])
    assert torch.equal(loaded.module.weight, network.weight)


@pytest.mark.filterwarnings("ignore")
def test_packed_weights_are_refused_with_a_reason() -> None:
    from edgekit.errors import UnsafeFileError

    quantized = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)))
    save(quantized, torch.zeros(1, 4))
    with pytest.raises(UnsafeFileError, match="TorchScript archive") as caught:
        load("net.pt", inputs=[parse_input("1x4")])
    assert "state dict" in caught.value.hint


class Deciding(nn.Module):
    """Branches, loops, lists and numbers that depend on sizes, as scripts have them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.turns = 2

    def forward(self, x: Tensor, extra: Tensor | None = None) -> dict[str, Tensor]:
        kept = [x]
        for index, layer in enumerate(self.layers):
            x = nn.functional.gelu(layer(x))
            if index % 2 == 0:
                kept.append(x)
        for turn in range(self.turns):
            x = x + float(turn)
        count = 0
        while count < x.shape[1] - 1:
            count += 1
            x = x * 2
        if extra is not None:
            x = x + extra
        width = x.size(-1) // 2
        return {"sum": torch.stack(kept).sum(0), "half": x[:, :width], "padded": padded(x, 7)}


def padded(x: Tensor, width: int) -> Tensor:
    missing = max(width - x.shape[-1], 0)
    return nn.functional.pad(x, [missing // 2, missing - missing // 2])


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class Same(nn.Module):
    """Computes its padding from the size of its input, which a trace writes as tensors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, 2)
        self.up = nn.ConvTranspose2d(4, 2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        down = max((-(-height // 2) - 1) * 2 + 3 - height, 0)
        right = max((-(-width // 2) - 1) * 2 + 3 - width, 0)
        if down > 0 or right > 0:
            x = nn.functional.pad(x, [right // 2, right - right // 2, down // 2, down - down // 2])
        return self.up(self.conv(x))


@pytest.mark.parametrize(
    ("network", "shape", "how"),
    [
        (Deciding(), "1x4", "scripted"),
        (Deciding(), "1x4", "traced"),
        (Same(), "1x3x9x10", "scripted"),
        (Same(), "1x3x9x10", "traced"),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), "1x5x8", "scripted"),
        (Recurrent(nn.GRU(4, 6, batch_first=True)), "1x5x4", "scripted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else value,
)
def test_code_that_depends_on_sizes(network: nn.Module, shape: str, how: str) -> None:
    spec = parse_input(shape)
    save(network, *([torch.randn(spec.shape)] if how == "traced" else []))
    loaded = load("net.pt", inputs=[spec])
    x = torch.randn(3, *spec.shape[1:])
    expected = torch.utils._pytree.tree_leaves(network(x))
    captured = capture(loaded.module, loaded.inputs[:1])
    assert captured.batch
    for got, value in zip(captured(x), expected, strict=True):
        assert torch.allclose(got, value, atol=1e-5)  # attention may take another kernel
    if isinstance(network, Deciding):
        assert [output.name for output in captured.outputs] == ["sum", "half", "padded"]


def test_second_input_may_be_given_or_not() -> None:
    network = Deciding()
    save(network)
    x, extra = torch.randn(2, 4), torch.randn(2, 4)
    one = load("net.pt", inputs=[parse_input("x:1x4")])
    two = load("net.pt", inputs=[parse_input("x:1x4"), parse_input("extra:1x4")])
    assert [spec.name for spec in two.inputs] == ["x", "extra"]
    for loaded, given in ((one, (x,)), (two, (x, extra))):
        expected, got = network(*given), loaded.module(*given)
        assert torch.allclose(got["padded"], expected["padded"], atol=1e-6)
        assert torch.allclose(got["half"], expected["half"], atol=1e-6)


def test_sizes_that_vary() -> None:
    network = Same()
    save(network)
    loaded = load("net.pt", inputs=[parse_input("1x3x9~x10~")])
    assert loaded.inputs[0].variable_axes == (2, 3)
    x = torch.randn(2, 3, 9, 10)
    assert torch.allclose(loaded.module(x), network(x), atol=1e-6)


@pytest.mark.parametrize("how", ["traced", "scripted"])
def test_training_mode_is_left(how: str) -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).eval()
    save(network.train() if how == "scripted" else network, *([X] if how == "traced" else []))
    loaded = load("net.pt", inputs=[parse_input("1x4")])
    assert torch.allclose(loaded.module(X), network.eval()(X), atol=1e-6)


X = torch.linspace(-1, 1, 4).reshape(1, 4)


def test_nothing_is_printed_about_what_cannot_be_converted(capfd: Any) -> None:
    test_what_torch_cannot_convert_gets_a_way_on()
    assert capfd.readouterr() == ("", "")
