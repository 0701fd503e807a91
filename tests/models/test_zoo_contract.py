"""What every network of the zoo must do; a new one is tested by being registered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from torch.utils._pytree import tree_leaves  # noqa: E402

from edgekit.architecture import Architecture, parse_arch  # noqa: E402
from edgekit.errors import MissingDependencyError  # noqa: E402
from edgekit.registry import MODELS  # noqa: E402
from edgekit.signature import ForwardSignature  # noqa: E402
from edgekit.types import InputSpec, Task  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

    from edgekit.architecture import ZooModel


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> ZooModel:
    return Architecture("zoo", request.param).zoo_model()


def example(spec: InputSpec, batch: int) -> Tensor:
    shape = (batch, *spec.shape[1:])
    generator = torch.Generator().manual_seed(0)
    if spec.dtype == "float32":
        return torch.randn(shape, generator=generator)
    return torch.zeros(shape, dtype=getattr(torch, spec.dtype))


def test_name_is_the_registered_one(model: ZooModel) -> None:
    assert model.name in MODELS
    assert parse_arch(f"zoo:{model.name}").zoo_model() is model


def test_forward_on_the_declared_inputs(model: ZooModel) -> None:
    network = model.build().eval()
    signature = ForwardSignature.of(network)
    assert signature.required <= len(model.inputs) <= len(signature.names)
    with torch.no_grad():
        output, *_ = tree_leaves(network(*(example(spec, 2) for spec in model.inputs)))
    assert output.dtype == torch.float32
    assert torch.isfinite(output).all()
    if model.task is Task.CLASSIFICATION:
        assert output.shape == (2, model.num_classes)


def test_class_count_is_honoured(model: ZooModel) -> None:
    if model.task is not Task.CLASSIFICATION:
        pytest.skip(f"{model.name} is not a classifier")
    architecture = parse_arch(f"zoo:{model.name}(num_classes=7)")
    assert architecture.num_classes() == 7
    with torch.no_grad():
        output = architecture.build().eval()(*(example(spec, 1) for spec in model.inputs))
    assert output.shape == (1, 7)


def test_preprocessing_gives_the_declared_input(model: ZooModel) -> None:
    if model.preprocessing is None or model.preprocessing.crop is None:
        pytest.skip(f"{model.name} takes no cropped images")
    channels = 1 if model.preprocessing.color == "gray" else 3
    crop = model.preprocessing.crop
    assert model.inputs[0].shape == (1, channels, crop, crop)


def test_weights_load_strictly(model: ZooModel) -> None:
    if model.weights is None:
        pytest.skip(f"{model.name} has no published weights")
    try:
        state = model.weights()
    except MissingDependencyError as error:
        pytest.skip(error.message)
    network = model.build()
    # Counters may be absent: they do not take part in inference.
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert unexpected == []
    assert [name for name in missing if not name.endswith("num_batches_tracked")] == []
