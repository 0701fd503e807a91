from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from edgekit.checkpoint import save_checkpoint  # noqa: E402
from edgekit.errors import ConfigError, LoadError  # noqa: E402
from edgekit.loading import load  # noqa: E402
from edgekit.options import parse_input, parse_preprocessing  # noqa: E402
from edgekit.types import InputSpec, Preprocessing, Task  # noqa: E402

SOURCE = """
import torch
from torch import nn

def build(width=4, classes=3, half=False):
    net = nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(1),
        nn.Linear(width * 36, classes))
    return net.half() if half else net

class Mask(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1))
        self.scale = nn.Parameter(torch.ones(2))
    def forward(self, x):
        return x * self.scale

class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
    def forward(self, x):
        return {"map": self.conv(x), "score": self.conv(x).mean((2, 3))}

class Lazy(nn.Sequential):
    def __init__(self):
        super().__init__(nn.LazyLinear(3), nn.LazyBatchNorm1d())

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
    def forward(self, ids):
        return self.head(self.embed(ids))
"""
MODULE = "net_of_test_loading"
ARCH = f"{MODULE}:build"
IMAGE = parse_input("1x3x8x8")
ZOO = "zoo:efficientnet_lite0"

Save = Callable[[Mapping[str, Any], Path], object]
CONTAINERS: dict[str, Save] = {
    "torch.save": torch.save,
    "old torch.save": lambda state, path: torch.save(
        state, path, _use_new_zipfile_serialization=False
    ),
    "safetensors": lambda state, path: save_file(dict(state), path),
}


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The user's own module in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    (tmp_path / f"{MODULE}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return __import__(MODULE)


@pytest.fixture
def trained(module: Any) -> nn.Module:
    """A network whose BatchNorm has seen data, in evaluation mode."""
    torch.manual_seed(0)
    network: nn.Module = module.build()
    network(torch.randn(8, 3, 8, 8) * 2 + 1)
    return network.eval()


def save(state: Mapping[str, Any], name: str = "weights.pt") -> Path:
    torch.save(dict(state), name)
    return Path(name)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", ["weights.pt", "weights.bin", "weights.safetensors", "weights"])
def test_plain_weights_by_content_whatever_the_name(
    container: str, name: str, trained: nn.Module
) -> None:
    CONTAINERS[container](trained.state_dict(), Path(name))
    loaded = load(name, arch=ARCH, inputs=[IMAGE])
    assert loaded.source == ("safetensors" if container == "safetensors" else "state_dict")
    assert loaded.sha256 == hashlib.sha256(Path(name).read_bytes()).hexdigest()
    assert loaded.arch == ARCH
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded.module(x), trained(x))
    assert not loaded.module.training
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())


def test_what_is_stated_without_the_zoo(trained: nn.Module) -> None:
    loaded = load(save(trained.state_dict()), arch=ARCH, inputs=[IMAGE])
    assert loaded.inputs == (InputSpec("input", (1, 3, 8, 8)),)
    assert (loaded.preprocessing, loaded.task, loaded.num_classes) == (
        None,
        Task.CLASSIFICATION,
        None,
    )
    assert loaded.notes == ("the task is not stated: taken as classification",)
    assert load("weights.pt", arch=ARCH, inputs=[IMAGE], task=Task.OTHER).notes == ()


@pytest.mark.parametrize(
    ("arch", "shape", "task", "shown"),
    [
        ("build", "1x3x8x8", Task.CLASSIFICATION, None),
        ("build(classes=1)", "1x3x8x8", Task.OTHER, "1x1"),
        ("Dense", "1x3x8x8", Task.OTHER, "1x6x8x8"),
        ("Dense", "4x3x8x8", Task.OTHER, "4x6x8x8"),
        ("Tied", "1x7:int64", Task.OTHER, "1x7x5"),
    ],
)
def test_task_is_assumed_from_the_first_output(
    arch: str, shape: str, task: Task, shown: str | None, module: Any
) -> None:
    made = module.build(classes=1) if "(" in arch else getattr(module, arch)()
    path = save(made.state_dict())
    loaded = load(path, arch=f"{MODULE}:{arch}", inputs=[parse_input(shape)])
    assert loaded.task is task
    because = "" if shown is None else f", because the first output is {shown}"
    assert loaded.notes == (f"the task is not stated: taken as {task.value}{because}",)
    assert not loaded.module.training


def test_network_that_does_not_run_is_loaded_all_the_same(trained: nn.Module) -> None:
    loaded = load(save(trained.state_dict()), arch=ARCH, inputs=[parse_input("1x3x9x9")])
    assert loaded.notes == ("the task is not stated: taken as other",)


def test_network_does_not_depend_on_the_file_afterwards(trained: nn.Module) -> None:
    path = save(trained.state_dict())
    loaded = load(path, arch=ARCH, inputs=[IMAGE])
    path.write_bytes(bytes(path.stat().st_size))  # same inode: a mapping would see the zeros
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(loaded.module(x), trained(x))


def test_arguments_reach_the_factory(module: Any) -> None:
    state = module.build(width=6, classes=2).state_dict()
    loaded = load(save(state), arch=f"{ARCH}(6, classes=2)", inputs=[IMAGE])
    assert loaded.module(torch.zeros(1, 3, 8, 8)).shape == (1, 2)
    assert loaded.arch == f"{ARCH}(6, classes=2)"


@pytest.fixture
def lite0_state() -> dict[str, Tensor]:
    from edgekit.models.efficientnet_lite import efficientnet_lite0

    return efficientnet_lite0(num_classes=2).state_dict()


def save_lite0(state: Mapping[str, Tensor], num_classes: int | None = 2) -> Path:
    return save_checkpoint(
        Path("model.pt"),
        arch=f"{ZOO}(num_classes=2)",
        state_dict=state,
        inputs=[InputSpec("photo", (1, 3, 64, 64))],
        preprocessing=Preprocessing((0.5,), (0.5,), 72, 64),
        task=Task.RANKING,
        num_classes=num_classes,
    )


def test_checkpoint_needs_no_options(lite0_state: dict[str, Tensor]) -> None:
    loaded = load(save_lite0(lite0_state))
    assert (loaded.source, loaded.arch) == ("checkpoint", f"{ZOO}(num_classes=2)")
    assert loaded.inputs == (InputSpec("photo", (1, 3, 64, 64)),)
    assert loaded.preprocessing == Preprocessing((0.5,), (0.5,), 72, 64)
    assert (loaded.task, loaded.num_classes, loaded.notes) == (Task.RANKING, 2, ())
    assert all(torch.equal(v, lite0_state[k]) for k, v in loaded.module.state_dict().items())


def test_options_override_the_checkpoint(lite0_state: dict[str, Tensor]) -> None:
    loaded = load(
        save_lite0(lite0_state),
        inputs=[parse_input("1x3x32x32")],
        preprocessing=parse_preprocessing("crop=32"),
        task=Task.EMBEDDING,
    )
    assert loaded.inputs == (InputSpec("photo", (1, 3, 32, 32)),)
    assert loaded.preprocessing == Preprocessing(crop=32)
    assert loaded.task is Task.EMBEDDING
    with pytest.raises(LoadError, match="does not fit zoo:efficientnet_lite0: 2 that do not fit"):
        load("model.pt", arch=ZOO, inputs=[IMAGE], preprocessing=Preprocessing())


def test_checkpoint_that_contradicts_itself(lite0_state: dict[str, Tensor]) -> None:
    with pytest.raises(LoadError, match=r"says 5 classes, but its .*num_classes=2\) has 2"):
        load(save_lite0(lite0_state, num_classes=5))
    assert load(save_lite0(lite0_state, num_classes=None)).num_classes is None


def test_state_dict_of_a_zoo_network(lite0_state: dict[str, Tensor]) -> None:
    loaded = load(save(lite0_state), arch=f"{ZOO}(num_classes=2)")
    assert loaded.inputs == (InputSpec("image", (1, 3, 224, 224)),)
    assert loaded.preprocessing == Preprocessing((0.5,), (0.5,), 256, 224)
    assert (loaded.task, loaded.num_classes) == (Task.CLASSIFICATION, 2)
    assert loaded.source == "state_dict"


def test_missing_arch_is_asked_for_with_an_example(trained: nn.Module) -> None:
    with pytest.raises(ConfigError, match="--arch must say which network") as caught:
        load(save(trained.state_dict()))
    assert "edgekit quantize weights.pt --arch zoo:efficientnet_lite0" in caught.value.hint
    assert "--arch 'my_net:build(width=0.75)' --input 1x3x224x224" in caught.value.hint


def test_missing_input_is_asked_for_with_an_example(trained: nn.Module) -> None:
    with pytest.raises(ConfigError, match="the shape of input input is not known") as caught:
        load(save(trained.state_dict()), arch=ARCH)
    assert "--input 1x3x224x224" in caught.value.hint


def test_arch_is_checked_before_the_file_is_opened() -> None:
    with pytest.raises(ConfigError, match="--arch 'resnet'"):
        load("does_not_exist.pt", arch="resnet")


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float64"])
def test_other_precisions_become_float32_with_a_note(stored: str, trained: nn.Module) -> None:
    state = {
        name: tensor.to(getattr(torch, stored)) if tensor.is_floating_point() else tensor
        for name, tensor in trained.state_dict().items()
    }
    loaded = load(save(state), arch=ARCH, inputs=[IMAGE], task=Task.OTHER)
    assert loaded.notes == (f"the weights are stored as {stored}; used as float32",)
    for name, tensor in loaded.module.state_dict().items():
        assert tensor.dtype == (torch.float32 if state[name].is_floating_point() else torch.int64)
        assert torch.equal(tensor, state[name].to(tensor.dtype))


def test_network_that_the_factory_makes_in_half_precision(trained: nn.Module) -> None:
    loaded = load(save(trained.state_dict()), arch=f"{ARCH}(half=True)", inputs=[IMAGE])
    x = torch.randn(1, 3, 8, 8)
    # Bit for bit: the float32 weights of the file must not pass through float16.
    assert torch.equal(loaded.module(x), trained(x))


def test_tied_weights_stay_tied(module: Any) -> None:
    state = {"embed.weight": torch.randn(5, 4)}
    state["head.weight"] = state["embed.weight"]
    loaded = load(save(state), arch=f"{MODULE}:Tied", inputs=[parse_input("1x2:int64")])
    assert loaded.module.head.weight is loaded.module.embed.weight
    assert loaded.inputs == (InputSpec("ids", (1, 2), "int64"),)


def test_lazy_layers_take_their_shape_from_the_file() -> None:
    reference = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval()
    path = save(reference.state_dict())
    loaded = load(path, arch=f"{MODULE}:Lazy", inputs=[parse_input("1x2")])
    x = torch.randn(4, 2)
    assert torch.equal(loaded.module(x), reference(x))


def test_old_files_lack_the_batch_counter(trained: nn.Module) -> None:
    state = {k: v for k, v in trained.state_dict().items() if "num_batches_tracked" not in k}
    assert len(state) == len(trained.state_dict()) - 1
    loaded = load(save(state), arch=ARCH, inputs=[IMAGE])
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(loaded.module(x), trained(x))


def fails(state: Mapping[str, Any], arch: str = ARCH) -> LoadError:
    with pytest.raises(LoadError) as caught:
        load(save(state), arch=arch, inputs=[IMAGE])
    assert caught.value.message.startswith("weights.pt")
    assert caught.value.message.isprintable()
    assert caught.value.hint
    return caught.value


def test_wrong_names(trained: nn.Module) -> None:
    state = dict(trained.state_dict())
    state["1.scale"] = state.pop("1.weight")
    state["9.bias"] = state.pop("4.bias")
    message = fails(state).message
    assert message == (
        f"weights.pt does not fit {ARCH}: 2 missing (1.weight, 4.bias), "
        "2 unexpected (1.scale, 9.bias)"
    )


def test_long_lists_are_cut(module: Any) -> None:
    message = fails({f"layer{index}": torch.zeros(1) for index in range(30)}).message
    assert "8 missing (0.weight, 0.bias, 1.weight, 1.bias and 4 more)" in message
    assert "30 unexpected (layer0, layer1, layer2, layer3 and 26 more)" in message


def test_wrong_shapes(module: Any) -> None:
    message = fails(module.build(width=6).state_dict(), f"{ARCH}(classes=2)").message
    # All but the batch counter, which is a scalar in both.
    assert "8 that do not fit (0.weight: expected shape 4x3x3x3, got 6x3x3x3" in message
    assert message.endswith("and 5 more)")


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("4.bias", torch.ones(3, dtype=torch.int64), "4.bias: expected float32, got int64"),
        ("4.bias", torch.ones(3, dtype=torch.complex64), "4.bias: expected float32, got complex64"),
        ("1.num_batches_tracked", torch.tensor(1.0), "expected int64, got float32"),
        ("4.bias", torch.ones(3).to_sparse(), "got a quantized, sparse"),
    ],
    ids=["integer", "complex", "counter", "sparse"],
)
def test_wrong_kinds_of_numbers(name: str, tensor: Tensor, said: str, trained: nn.Module) -> None:
    assert said in fails(trained.state_dict() | {name: tensor}).message


@pytest.mark.filterwarnings("ignore")  # torch announces the end of this kind of tensor
def test_quantized_tensors(trained: nn.Module) -> None:
    quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    message = fails(trained.state_dict() | {"4.bias": quantized}).message
    assert "4.bias: expected plain numbers, got a quantized, sparse" in message


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.zeros(2), "holds a Tensor, not a state dict"),
        ([torch.zeros(2)], "holds a list, not a state dict"),
        (None, "holds a NoneType, not a state dict"),
        ({}, "it has no tensors"),
        ({"w": torch.zeros(2), "epoch": 3, 7: 1}, "entries that are not tensors: epoch, 7"),
        ({"w": torch.zeros(2), 7: torch.zeros(2)}, "entries that are not tensors: 7"),
    ],
    ids=["tensor", "list", "nothing", "empty", "mixed", "numbered"],
)
def test_other_values(value: object, said: str) -> None:
    torch.save(value, "weights.pt")
    with pytest.raises(LoadError, match=said):
        load("weights.pt", arch=ARCH, inputs=[IMAGE])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["0.weight", "1.running_var"])
def test_weights_that_are_not_finite(name: str, value: float, trained: nn.Module) -> None:
    trained.state_dict()[name].view(-1)[2] = value
    error = fails(trained.state_dict())
    assert error.message == f"weights.pt: 1 tensors hold NaN or infinity: {name}"


def test_numbers_beyond_float32_are_not_finite(trained: nn.Module) -> None:
    state = {k: v.double() if v.is_floating_point() else v for k, v in trained.state_dict().items()}
    state["0.bias"][0] = 1e300
    assert "NaN or infinity: 0.bias" in fails(state).message


def test_large_finite_weights_are_accepted(trained: nn.Module) -> None:
    # Their sum overflows although each number is finite.
    trained.state_dict()["0.weight"].fill_(3e38)
    assert load(save(trained.state_dict()), arch=ARCH, inputs=[IMAGE]).source == "state_dict"


def test_mask_buffer_may_hold_infinity_but_not_nan(module: Any) -> None:
    state = module.Mask().state_dict()
    arch = f"{MODULE}:Mask"
    loaded = load(save(state), arch=arch, inputs=[parse_input("1x2")])
    assert torch.isinf(loaded.module.mask).sum() == 1
    state["mask"][0, 0] = math.nan
    assert "NaN or infinity: mask" in fails(state, arch).message


@pytest.mark.parametrize(
    ("shape", "text", "said"),
    [
        ("1x3x8x8", "crop=7", "crops to 7x7, but input 'input' is 1x3x8x8"),
        ("1x3x8x9~", "crop=9", "crops to 9x9, but input 'input' is 1x3x8x9"),
        ("1x3x8x8", "color=gray", r"gives 1 channels \(color=gray\), but input 'input' is 1x3x8x8"),
        ("1x1x8x8", "mean=0.5", r"gives 3 channels \(color=rgb\)"),
        ("1x1x8x8", "color=gray,mean=1/2/3", r"gives 1 channels \(color=gray\)"),
        ("1x3", "mean=0.5", "input 'input' has shape 1x3"),
    ],
)
def test_preprocessing_that_contradicts_the_input(
    shape: str, text: str, said: str, trained: nn.Module
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        load(
            save(trained.state_dict()),
            arch=ARCH,
            inputs=[parse_input(shape)],
            preprocessing=parse_preprocessing(text),
        )
    assert caught.value.hint


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ("1x3x8x8", "resize=10,crop=8"),
        ("1x3x8x8", "resize=10"),  # a resize alone leaves a size that depends on the image
        ("1x3x9~x9~", "crop=8"),
        ("1x1x8x8", "crop=8,color=gray,mean=0.1"),
    ],
)
def test_preprocessing_that_agrees(shape: str, text: str, trained: nn.Module) -> None:
    chosen = parse_preprocessing(text)
    loaded = load(
        save(trained.state_dict()), arch=ARCH, inputs=[parse_input(shape)], preprocessing=chosen
    )
    assert loaded.preprocessing == chosen
