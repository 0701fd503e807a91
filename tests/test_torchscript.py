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
        script: Any = torch.jit.trace(network, traced) if traced else torch.jit.script(network)
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
    with pytest.raises(LoadError, match="torch cannot convert this TorchScript network") as caught:
        load("net.pt", inputs=[parse_input("1x4")])
    assert "torch.export.save(torch.export.export(" in caught.value.hint
    assert "--arch" in caught.value.hint


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
