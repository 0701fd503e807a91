"""torch.export archives: from `.pt2` to a captured network, without running what is inside."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the host part needs the extra 'torch'")

from torch import Tensor, nn  # noqa: E402

from edgekit.capture import capture  # noqa: E402
from edgekit.errors import ConfigError, LoadError  # noqa: E402
from edgekit.loading import LoadedModel, load  # noqa: E402
from edgekit.options import parse_input  # noqa: E402
from edgekit.types import Effort, InputSpec  # noqa: E402

Dim = torch.export.Dim
BATCH = ({0: Dim("batch")},)


class Net(nn.Module):
    """Convolution, BatchNorm that has seen data, dropout and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 4)
        self(torch.randn(8, 3, 8, 8) * 3 + 1)
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(image)))
        return self.head(self.drop(x.mean((2, 3))))


class Joined(nn.Module):
    """Two tensors, one by keyword, a constant argument, nested outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor, *, scale: Tensor, flag: bool = True) -> Any:
        y = self.head(nn.functional.pad(x * scale, (0, 1), value=0.5))
        return {"a": y, "rest": (y.sum(1), None)}


class Keyed(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"mask": x.sigmoid(), "boxes": x * 2}


class Flattening(nn.Module):
    """Writes the batch of its export into a reshape."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu().reshape(1, -1)


def export(
    network: nn.Module, *inputs: Tensor, dynamic: Any = None, decomposed: bool = False, **kw: Any
) -> Path:
    program = torch.export.export(network, inputs, kw, dynamic_shapes=dynamic)
    if decomposed:
        program = program.run_decompositions()
    torch.export.save(program, "net.pt2")
    return Path("net.pt2")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def differs(loaded: LoadedModel, expected: Any, *inputs: Tensor) -> float:
    got = loaded.module(*inputs)
    return float((got - expected).abs().max())


@pytest.mark.parametrize("decomposed", [False, True], ids=["as written", "decomposed"])
def test_network_of_the_archive(decomposed: bool) -> None:
    network, image = Net(), torch.randn(2, 3, 8, 8)
    loaded = load(export(network, image, dynamic=BATCH, decomposed=decomposed))
    assert loaded.inputs == (InputSpec("image", (1, 3, 8, 8)),)
    assert (loaded.source, loaded.arch) == ("exported_program", "torch.export program")
    assert loaded.notes == ("the task is not stated: taken as classification",)
    assert not loaded.module.training
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())
    # The same kernels on the same numbers; a decomposition may sum in another order.
    assert differs(loaded, network(image), image) < 1e-6
    captured = capture(loaded.module, loaded.inputs)
    assert captured.batch
    assert [n for n in captured.graph.graph.nodes if n.target is torch.ops.aten.batch_norm.default]


def test_sizes_that_vary() -> None:
    shapes = ({0: Dim("batch"), 2: Dim.AUTO, 3: 2 * Dim("half")},)
    loaded = load(export(Net(), torch.randn(2, 3, 10, 12), dynamic=shapes))
    assert loaded.inputs == (InputSpec("image", (1, 3, 10, 12), "float32", (2, 3)),)
    chosen = load("net.pt2", inputs=[parse_input("image:1x3x16~x8")])
    assert chosen.inputs == (InputSpec("image", (1, 3, 16, 8), "float32", (2,)),)
    assert capture(chosen.module, chosen.inputs).outputs[0].shape == (1, 4)


def test_sizes_that_are_multiples() -> None:
    shapes = ({2: 4 * Dim("rows"), 3: 4 * Dim("columns")},)
    loaded = load(export(Net(), torch.randn(1, 3, 8, 12), dynamic=shapes))
    assert loaded.inputs == (InputSpec("image", (1, 3, 8, 12), "float32", (2, 3), multiple=4),)
    chosen = load("net.pt2", inputs=[parse_input("1x3x16~8x8~8")])
    assert chosen.inputs[0].multiple == 8
    with pytest.raises(ConfigError, match="was exported for 1~x3x8~4x12~4:float32, not for"):
        load("net.pt2", inputs=[parse_input("1x3x16~2x8~2")])


@pytest.mark.parametrize("text", ["1x3x9x8", "1x1x8x8", "1x3x8", "1x3x8x8:int64", "1x3x8~x8"])
def test_input_that_the_export_has_fixed(text: str) -> None:
    export(Net(), torch.randn(2, 3, 8, 8), dynamic=BATCH)
    with pytest.raises(ConfigError, match="was exported for 1~x3x8x8:float32, not for") as caught:
        load("net.pt2", inputs=[parse_input(text)])
    assert "dynamic_shapes" in caught.value.hint


def test_batch_of_one_that_is_free() -> None:
    # The default of torch.export: the batch was not declared dynamic, but nothing depends on it.
    loaded = load(export(Net(), torch.randn(1, 3, 8, 8)))
    captured = capture(loaded.module, loaded.inputs)
    assert (captured.batch, captured.notes) == (True, ())


def test_batch_of_one_that_is_written_into_the_program() -> None:
    loaded = load(export(Flattening(), torch.randn(1, 5)))
    captured = capture(loaded.module, loaded.inputs)
    assert not captured.batch
    assert "exported for a batch of 1 alone" in captured.notes[0]
    x = torch.randn(1, 5)
    assert torch.equal(captured(x)[0], x.relu())


def test_larger_batch_stays() -> None:
    loaded = load(export(Net(), torch.randn(4, 3, 8, 8)))
    assert loaded.inputs == (InputSpec("image", (4, 3, 8, 8)),)
    assert not capture(loaded.module, loaded.inputs).batch


@pytest.mark.parametrize("decomposed", [False, True], ids=["as written", "decomposed"])
def test_training_mode_is_told_and_left(decomposed: bool) -> None:
    network, image = Net(), torch.randn(2, 3, 8, 8)
    export(network.train(), image, dynamic=BATCH, decomposed=decomposed)
    network.eval()
    loaded = load("net.pt2")
    assert "exported in training mode" in loaded.notes[0]
    assert differs(loaded, network(image), image) < 1e-6  # as above
    before = {name: value.clone() for name, value in loaded.module.state_dict().items()}
    loaded.module(image)
    for name, value in loaded.module.state_dict().items():
        assert torch.equal(value, before[name])
    assert capture(loaded.module, loaded.inputs).batch


@pytest.mark.parametrize("decomposed", [False, True], ids=["as written", "decomposed"])
@pytest.mark.parametrize(
    "norm",
    [
        nn.InstanceNorm2d(3, affine=True),
        nn.InstanceNorm2d(3, track_running_stats=True),
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.GroupNorm(1, 3),
    ],
    ids=["instance", "instance with statistics", "batch without statistics", "group"],
)
def test_normalization_that_computes_its_statistics(norm: nn.Module, decomposed: bool) -> None:
    # Its operators say `training` in evaluation mode as well, and must keep it.
    x = torch.randn(2, 3, 5, 5)
    loaded = load(export(nn.Sequential(norm).eval(), x, decomposed=decomposed))
    assert differs(loaded, norm.eval()(x), x) < 1e-6
    assert "training" not in loaded.notes[0]


def test_quantization_of_an_archive() -> None:
    pytest.importorskip("onnxruntime")
    from edgekit import quantize

    network = Net()
    report = quantize(
        export(network, torch.randn(2, 3, 8, 8), dynamic=BATCH),
        out="result",
        targets=["onnxruntime"],
        effort=Effort.INSTANT,
    )
    assert report.failures == {}
    assert report.document["model"]["source"] == "exported_program"
    assert report.recipe.arch is None
    again = quantize("net.pt2", out="again", recipe=report.recipe)
    assert again.failures == {}
    written = [Path(name, "onnxruntime", "model.onnx").read_bytes() for name in ("result", "again")]
    assert written[0] == written[1]


def test_keywords_constants_and_nested_outputs() -> None:
    network, x, scale = Joined(), torch.randn(2, 5), torch.randn(5)
    loaded = load(export(network, x, scale=scale, flag=True))
    assert [(spec.name, spec.shape) for spec in loaded.inputs] == [("x", (2, 5)), ("scale", (5,))]
    expected = network(x, scale=scale)
    got = loaded.module(x, scale)
    assert torch.allclose(got[0], expected["a"], atol=1e-6)
    assert torch.allclose(got[1], expected["rest"][0], atol=1e-6)
    assert len(capture(loaded.module, loaded.inputs).outputs) == 2


def test_names_of_outputs_are_kept() -> None:
    loaded = load(export(Keyed(), torch.randn(2, 5), dynamic=BATCH))
    outputs = capture(loaded.module, loaded.inputs).outputs
    assert [output.name for output in outputs] == ["mask", "boxes"]


def test_weights_alone_with_arch(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Linear(3, 2))
    export(network, torch.randn(2, 3), dynamic=BATCH)
    loaded = load("net.pt2", arch="torch.nn:Linear(3, 2)", inputs=[parse_input("1x3")])
    assert torch.equal(loaded.module.weight, network[0].weight)
    assert loaded.source == "state_dict"


@pytest.mark.parametrize("kind", ["half", "bfloat16", "double"])
def test_other_precisions_are_refused(kind: str) -> None:
    network = getattr(nn.Linear(3, 2), kind)()
    export(network, torch.randn(2, 3).to(network.weight.dtype))
    with pytest.raises(LoadError, match="was exported with weights in") as caught:
        load("net.pt2")
    assert "float32" in caught.value.hint


def test_input_that_is_no_tensor_of_numbers() -> None:
    export(nn.Sequential(nn.Identity()), torch.randn(3).to(torch.complex64))
    with pytest.raises(ConfigError, match="input 'input' of the program is complex64"):
        load("net.pt2")


def test_weights_that_are_not_finite() -> None:
    network = nn.Linear(3, 2)
    network.weight.data[0, 0] = float("nan")
    with pytest.raises(LoadError, match="1 tensors hold NaN or infinity: weight"):
        load(export(network, torch.randn(2, 3)))


def doctored(change: Callable[[dict[str, bytes]], object]) -> None:
    from zipfile import ZipFile

    with ZipFile("net.pt2") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with ZipFile("net.pt2", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_several_programs() -> None:
    def add(members: dict[str, bytes]) -> None:
        for name in list(members):
            twin = name.replace("model", "second").replace("seconds/", "models/")
            members.setdefault(twin, members[name])

    export(nn.Linear(3, 2), torch.randn(2, 3), dynamic=BATCH)
    doctored(add)
    with pytest.raises(ConfigError, match="holds several programs: model, second") as caught:
        load("net.pt2")
    assert caught.value.hint == "choose one, for example: --weights model"
    assert load("net.pt2", weights="second").inputs == (InputSpec("input", (1, 3)),)
    with pytest.raises(ConfigError, match="holds no program 'third'"):
        load("net.pt2", weights="third")


def test_reason_of_torch_is_told() -> None:
    def age(members: dict[str, bytes]) -> None:
        program = json.loads(members["net/models/model.json"])
        program["schema_version"]["major"] = 3
        members["net/models/model.json"] = json.dumps(program).encode()

    export(nn.Linear(3, 2), torch.randn(2, 3))
    doctored(lambda members: [members.__setitem__(_net(n), members.pop(n)) for n in list(members)])
    doctored(age)
    with pytest.raises(LoadError, match=r"does not match our current schema version") as caught:
        load("net.pt2")
    assert "another version of PyTorch" in caught.value.hint


def _net(name: str) -> str:
    return "net/" + name.partition("/")[2]


def test_layout_before_torch_2_8() -> None:
    network, x = nn.Linear(3, 2), torch.randn(2, 3)
    export(network, x, dynamic=BATCH)

    def to_old(members: dict[str, bytes]) -> None:
        import io

        program = next(v for k, v in members.items() if k.endswith("models/model.json"))
        members.clear()
        members["version"] = b"8.20"
        members["serialized_exported_program.json"] = program
        for name, value in (
            ("state_dict", dict(network.named_parameters())),
            ("constants", {}),
            ("example_inputs", ((x,), {})),
        ):
            buffer = io.BytesIO()
            torch.save(value, buffer)
            members[f"serialized_{name}.pt"] = buffer.getvalue()

    doctored(to_old)
    assert torch.allclose(load("net.pt2").module(x), network(x), atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_nothing_is_logged_and_the_log_is_left_as_it_was(capfd: Any) -> None:
    import logging

    logger = logging.getLogger("torch.export")
    before = logger.handlers[:], logger.propagate
    test_reason_of_torch_is_told()
    assert (logger.handlers[:], logger.propagate) == before
    assert capfd.readouterr() == ("", "")
