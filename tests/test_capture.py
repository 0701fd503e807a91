"""Captured graphs against the modules they come from."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.capture import CapturedModel, Fill, capture, example_inputs, first_output
from edgekit.errors import CaptureError
from edgekit.graph import OpKind, op_kind, op_name
from edgekit.types import InputSpec, OutputSpec, Task

IMAGE = InputSpec("image", (1, 3, 12, 12))


def draw(model: CapturedModel, batch: int, seed: int = 3) -> tuple[Tensor, ...]:
    return example_inputs(model.inputs, batch, torch.Generator().manual_seed(seed))


def assert_equals_module(model: CapturedModel, module: nn.Module, batch: int) -> None:
    inputs = draw(model, batch)
    expected = module.eval()(*(x.clone() for x in inputs))
    if isinstance(expected, dict):
        expected = tuple(expected.values())
    expected = expected if isinstance(expected, tuple) else (expected,)
    got = model(*inputs)
    assert len(got) == len(expected)
    for g, e in zip(got, expected, strict=True):
        # the same kernels on the same numbers; only a batch may be cut differently for threads
        assert torch.allclose(g, e, rtol=1e-5, atol=1e-6)


def ops(model: CapturedModel) -> list[str]:
    return [op_name(node) for node in model.graph.graph.nodes if node.op == "call_function"]


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.conv(x))).mean((2, 3)))


def test_classifier_with_dynamic_batch() -> None:
    module = Classifier()
    model = capture(module, [IMAGE], task=Task.CLASSIFICATION, num_classes=5)
    assert model.batch
    assert model.notes == ()
    assert model.outputs == (OutputSpec("output", (1, 5)),)
    assert (model.task, model.num_classes) == (Task.CLASSIFICATION, 5)
    for batch in (1, 2, 7):
        assert_equals_module(model, module, batch)
    assert "batch_norm" in ops(model), "BatchNorm must stay until calibration is done"


def test_module_stays_as_it_is() -> None:
    module = Classifier().train()
    module.head.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    model = capture(module, [IMAGE])
    assert module.training
    assert module.norm.training
    assert not module.head.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())
    assert not any(parameter.requires_grad for parameter in model.graph.parameters())


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(10, 4), nn.Linear(7, 2)

    def forward(self, ids: Tensor, features: Tensor) -> Tensor:
        return self.head(torch.cat([self.table(ids).mean(1), features], 1))


def test_several_inputs_one_of_integers() -> None:
    module = TwoInputs()
    specs = [InputSpec("ids", (1, 6), "int64"), InputSpec("features", (1, 3))]
    model = capture(module, specs)
    assert model.batch
    ids = torch.randint(10, (4, 6), generator=torch.Generator().manual_seed(0))
    features = torch.randn(4, 3)
    assert torch.allclose(model(ids, features)[0], module(ids, features), atol=1e-6)


class SeveralOutputs(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv = kind, nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> object:
        y = self.conv(x)
        return {
            "tuple": (y, y.mean((2, 3))),
            "dict": {"map": y, "scores": y.mean((2, 3))},
            "nested": (y, {"scores": y.mean((2, 3))}),
            "none": (y, None),
            "dict none": {"map": y, "auxiliary": None},
            "classes": (y, y.mean((2, 3)).argmax(1)),
        }[self.kind]


@pytest.mark.parametrize(
    ("kind", "names", "shapes"),
    [
        ("tuple", ["output_0", "output_1"], [(1, 4, 10, 10), (1, 4)]),
        ("dict", ["map", "scores"], [(1, 4, 10, 10), (1, 4)]),
        ("nested", ["output_0", "output_1"], [(1, 4, 10, 10), (1, 4)]),
        ("none", ["output"], [(1, 4, 10, 10)]),
        ("dict none", ["map"], [(1, 4, 10, 10)]),
        ("classes", ["output_0", "output_1"], [(1, 4, 10, 10), (1,)]),
    ],
)
def test_outputs_are_flat_and_named(
    kind: str, names: list[str], shapes: list[tuple[int, ...]]
) -> None:
    module = SeveralOutputs(kind)
    model = capture(module, [IMAGE])
    assert [spec.name for spec in model.outputs] == names
    assert [spec.shape for spec in model.outputs] == shapes
    x = draw(model, 3)[0]
    got = model(x)
    assert torch.allclose(got[0], module.conv(x), atol=1e-6)
    if len(names) == 2:
        pooled = module.conv(x).mean((2, 3))
        expected = pooled.argmax(1) if kind == "classes" else pooled
        assert torch.allclose(got[1], expected, atol=1e-6)
        assert model.outputs[1].dtype == ("int64" if kind == "classes" else "float32")


def test_output_that_is_no_tensor_is_refused() -> None:
    class Counts(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, int]:
            return x * 2, 7

    with pytest.raises(CaptureError, match="returns 7"):
        capture(Counts(), [IMAGE])


def test_output_without_a_batch_is_refused() -> None:
    class Total(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum()

    with pytest.raises(CaptureError, match="output 'output' is a single number"):
        capture(Total(), [IMAGE])


def test_variable_height_and_width() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1))
    model = capture(module, [InputSpec("image", (1, 3, 16, 16), variable_axes=(2, 3))])
    assert model.batch
    for shape in ((1, 3, 16, 16), (2, 3, 9, 31)):
        x = torch.randn(shape)
        assert torch.allclose(model(x)[0], module(x), atol=1e-6)


def test_inputs_without_batch_axis_stay_fixed() -> None:
    model = capture(nn.Linear(4, 2), [InputSpec("table", (6, 4))])
    assert not model.batch
    assert model.notes == ()
    assert model.outputs[0].shape == (6, 2)


class BatchOfOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 12 * 12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.view(1, -1))


def test_network_that_fixes_the_batch_is_captured_with_a_note() -> None:
    module = BatchOfOne()
    model = capture(module, [IMAGE])
    assert not model.batch
    assert len(model.notes) == 1
    assert model.notes[0].startswith("the batch is fixed at 1: torch.export says")
    assert model.outputs[0].shape == (1, 2)
    assert_equals_module(model, module, 1)


class InPlace(nn.Module):
    """Each variant changes a tensor that is read again afterwards."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv, self.norm = kind, nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm(self.conv(x))
        before = y.sum((1, 2, 3))
        if self.kind == "relu":
            F.relu_(y)
        elif self.kind == "module":
            y = nn.ReLU6(inplace=True)(y)
        elif self.kind == "sum":
            y += self.conv(x)
        elif self.kind == "chain":
            y.mul_(2).add_(1).clamp_(0, 1)
        elif self.kind == "view":
            y.view(-1).relu_()
        elif self.kind == "slice":
            y[:, 0] = 0
            y[:, 1:3].mul_(2)
        elif self.kind == "older view":
            older = y.transpose(2, 3)
            y.relu_()
            y = older
        return y, before


@pytest.mark.parametrize("kind", ["relu", "module", "sum", "chain", "view", "slice", "older view"])
def test_in_place_operators_become_functional(kind: str) -> None:
    module = InPlace(kind)
    module.norm.running_mean = torch.tensor([0.3, -0.2, 0.0, 1.0])
    model = capture(module, [IMAGE])
    assert_equals_module(model, module, 3)
    assert not [name for name in ops(model) if name.endswith("_")]
    kinds = [op_kind(node) for node in model.graph.graph.nodes]
    assert kinds.count(OpKind.BATCH_NORM) == 1
    x = draw(model, 2)[0]
    kept = x.clone()
    model(x)
    assert torch.equal(x, kept)


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x - 1


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("four channels, please\nsecond line")


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Branches(), "torch.export cannot capture the network"),
        (Fails(), r"fails on its declared inputs \(image:1x3x12x12:float32\): ValueError: four"),
        (Random(), "does not compute what the network does"),
        (Counts(), "does not compute what the network does"),
    ],
    ids=["control flow", "wrong input", "random", "state"],
)
def test_what_cannot_be_captured_is_an_error_with_a_hint(
    module: nn.Module, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)  # torch logs the failure that is expected here
    with pytest.raises(CaptureError, match=message) as caught:
        capture(module, [IMAGE])
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_mean_over_positions_is_a_pooling() -> None:
    model = capture(Classifier(), [IMAGE])
    kinds = [op_kind(node) for node in model.graph.graph.nodes]
    assert OpKind.GLOBAL_POOL in kinds
    pooled = next(n for n in model.graph.graph.nodes if op_kind(n) is OpKind.GLOBAL_POOL)
    assert tuple(pooled.meta["val"].shape[1:]) == (4, 1, 1)


@pytest.mark.parametrize("axes", [(1,), (1, 2, 3), (2,), (-1,)])
def test_other_means_stay(axes: tuple[int, ...]) -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(axes)

    model = capture(Mean(), [IMAGE])
    assert ops(model) == ["mean"]
    assert_equals_module(model, Mean(), 2)


def test_example_inputs_have_the_declared_shapes_and_types() -> None:
    specs = [
        InputSpec("image", (1, 3, 4, 4)),
        InputSpec("half", (1, 2), "float16"),
        InputSpec("ids", (1, 5), "int64"),
        InputSpec("table", (6, 4)),
        InputSpec("mask", (1, 5), "bool"),
    ]
    made = example_inputs(specs, 3, torch.Generator().manual_seed(0))
    shapes = [(3, 3, 4, 4), (3, 2), (3, 5), (6, 4), (3, 5)]
    assert [tuple(x.shape) for x in made] == shapes
    assert [str(x.dtype) for x in made] == [f"torch.{spec.dtype}" for spec in specs]
    assert float(made[0].std()) > 0.5
    assert all(not x.any() for x in example_inputs(specs, 2))
    filled = example_inputs(specs, 2, fill=Fill(1, 1))
    assert [bool(x.all()) for x in filled] == [False, False, True, False, True]


class Masked(nn.Module):
    """An encoder over a padded sequence; ``hides`` says what a one in the mask means."""

    def __init__(self, hides: bool) -> None:
        super().__init__()
        self.hides = hides
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.layer(x, src_key_padding_mask=mask if self.hides else ~mask).mean(1)


@pytest.mark.parametrize("hides", [True, False], ids=["hides", "keeps"])
def test_masks_are_tried_in_both_senses(hides: bool) -> None:
    torch.manual_seed(0)
    module = Masked(hides).eval()
    model = capture(module, [InputSpec("x", (1, 6, 8)), InputSpec("mask", (1, 6), "bool")])
    assert model.batch
    x, mask = torch.randn(3, 6, 8), torch.zeros(3, 6, dtype=torch.bool)
    mask[:, 4:] = True
    given = mask if hides else ~mask
    # with gradients PyTorch takes the operators that were captured, not its fused ones
    assert torch.allclose(model(x, given)[0], module(x, given).detach(), rtol=1e-5, atol=1e-6)


def test_table_of_a_single_row_takes_zeros() -> None:
    class OneRow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(1, 4)

        def forward(self, ids: Tensor) -> Tensor:
            return self.table(ids).mean(1)

    model = capture(OneRow(), [InputSpec("ids", (1, 5), "int64")])
    assert model(torch.zeros(2, 5, dtype=torch.int64))[0].shape == (2, 4)


def test_network_that_takes_no_fill_is_an_error() -> None:
    class Refuses(nn.Module):
        def forward(self, ids: Tensor) -> Tensor:
            raise ValueError("never")

    with pytest.raises(CaptureError, match=r"ids:1x5:int64\): ValueError: never"):
        capture(Refuses(), [InputSpec("ids", (1, 5), "int64")])


def test_first_output() -> None:
    ids = InputSpec("ids", (1, 5), "int64")
    first = first_output(nn.Embedding(7, 3), [ids])
    assert first is not None
    assert first.shape == (1, 5, 3)
    module = nn.Sequential(nn.Linear(4, 2), nn.Dropout())
    first_output(module, [InputSpec("x", (1, 4))])
    assert module.training
    with pytest.raises(CaptureError, match="fails on its declared inputs"):
        first_output(module, [InputSpec("x", (1, 5))])


@pytest.mark.filterwarnings("error")
def test_nothing_is_said_on_the_console(capfd: pytest.CaptureFixture[str]) -> None:
    """torch prints a program whose batch it cannot leave open, and warns on the way."""

    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[0] > 1 and x.sum() > 0:
                return x * 2
            return x.reshape(1, -1)

    assert capture(Fixed(), [IMAGE]).notes
    assert capfd.readouterr() == ("", "")
