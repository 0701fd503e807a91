"""The ONNX template: one placeholder for each site, names and dimensions as stated."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.capture import capture
from edgekit.errors import ExportError
from edgekit.sites import Role, SitedModel, insert_sites
from edgekit.template import DOMAIN, OPSET, SITE_OP, build_template
from edgekit.types import InputSpec


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, image: Tensor, scale: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.conv(image)) * scale[:, :, None, None]
        return {"scores": self.head(x.mean((2, 3))), "map": x}


INPUTS = (InputSpec("image", (1, 3, 8, 8)), InputSpec("scale", (1, 4)))


@pytest.fixture(scope="module")
def sited() -> SitedModel:
    return insert_sites(capture(Network(), INPUTS))


@pytest.fixture(scope="module")
def template(sited: SitedModel) -> ir.Model:
    return build_template(sited)


def placeholders(template: ir.Model) -> dict[int, ir.Node]:
    nodes = [n for n in template.graph if (n.domain, n.op_type) == (DOMAIN, SITE_OP)]
    return {node.attributes["index"].as_int(): node for node in nodes}


def test_every_site_has_its_placeholder(sited: SitedModel, template: ir.Model) -> None:
    found = placeholders(template)
    assert sorted(found) == [site.index for site in sited.sites]
    for site in sited.sites:
        value = found[site.index].inputs[0]
        assert value is not None
        if site.role in (Role.WEIGHT, Role.BIAS):
            assert value.name == sited.node(site.tensor).target
            assert value.is_initializer()


def test_names_of_inputs_outputs_and_batch(template: ir.Model) -> None:
    assert [value.name for value in template.graph.inputs] == ["image", "scale"]
    assert [value.name for value in template.graph.outputs] == ["scores", "map"]
    for value in (*template.graph.inputs, *template.graph.outputs):
        assert value.shape is not None
        batch, *rest = value.shape
        assert isinstance(batch, ir.SymbolicDim)
        assert batch.value == "batch"
        assert all(isinstance(size, int) for size in rest)


def test_opset_and_producer(template: ir.Model) -> None:
    assert template.opset_imports[""] == OPSET == 20
    assert template.producer_name == "edgekit"


def test_nothing_of_this_machine_is_left(template: ir.Model) -> None:
    # torch.onnx stores stack traces, which name files
    text = ir.to_proto(template).SerializeToString()
    for word in (b".py", b"site-packages", b"pkg.torch", b"Traceback"):
        assert word not in text


def test_same_network_gives_the_same_bytes(sited: SitedModel, template: ir.Model) -> None:
    again = build_template(sited)
    assert ir.to_proto(again).SerializeToString() == ir.to_proto(template).SerializeToString()


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (InputSpec("image", (1, 3, 8, 8), variable_axes=(2, 3)), ["batch", 3, None, None]),
        (InputSpec("image", (1, 3, 8, 8)), ["batch", 3, 8, 8]),
        (InputSpec("image", (2, 3, 8, 8)), [2, 3, 8, 8]),
        (InputSpec("image", (2, 3, 8, 8), variable_axes=(3,)), [2, 3, 8, None]),
    ],
)
def test_variable_sizes_stay_variable(spec: InputSpec, expected: list[object]) -> None:
    model = insert_sites(capture(nn.Conv2d(3, 2, 3, padding=1), [spec]))
    (value,) = build_template(model).graph.inputs
    assert value.shape is not None
    for size, wanted in zip(value.shape, expected, strict=True):
        if wanted is None:
            assert isinstance(size, ir.SymbolicDim)
            assert size.value != "batch"
        else:
            assert wanted == (size.value if isinstance(size, ir.SymbolicDim) else size)


def test_operator_without_onnx_form_is_an_error() -> None:
    class Eigen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.eigvalsh(x @ x.mT)

    model = insert_sites(capture(Eigen(), [InputSpec("x", (1, 4, 4))]))
    with pytest.raises(ExportError, match=r"torch\.onnx cannot translate the network") as caught:
        build_template(model)
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_template_leaves_the_model_as_it_is(sited: SitedModel) -> None:
    code = sited.model.graph.code
    stored = {name: value.clone() for name, value in sited.model.graph.state_dict().items()}
    build_template(sited)
    assert sited.model.graph.code == code
    found = sited.model.graph.state_dict()
    assert all(torch.equal(found[name], value) for name, value in stored.items())


def test_batch_is_named_where_torch_shares_shapes() -> None:
    """Values that share one shape get it frozen."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 16, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(self.second(F.relu(self.first(x))))

    model = insert_sites(capture(Tokens(), [InputSpec("x", (1, 10, 8))]))
    (value,) = build_template(model).graph.outputs
    assert value.shape is not None
    assert [str(size) for size in value.shape] == ["batch", "10", "16"]


def test_nothing_is_said_on_the_console(capfd: pytest.CaptureFixture[str]) -> None:
    class Anchors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.anchors = nn.Parameter(torch.randn(5, 2))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x * 2, self.anchors  # the optimizer warns of an initializer that is an output

    build_template(insert_sites(capture(Anchors(), [InputSpec("x", (1, 3))])))
    assert capfd.readouterr() == ("", "")
