"""A file that has the stated size written into it fails, although it is right at that size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the host part needs the extra 'torch'")
onnx = pytest.importorskip("onnx", reason="alters exported files")
pytest.importorskip("onnxruntime", reason="runs exported files")

from torch import Tensor, nn  # noqa: E402

from edgekit.capture import capture, other_size  # noqa: E402
from edgekit.exporters.onnxruntime import OnnxRuntimeTarget  # noqa: E402
from edgekit.lowering import LoweredModel  # noqa: E402
from edgekit.quantized import QuantizedModel, lower  # noqa: E402
from edgekit.template import build_template  # noqa: E402
from edgekit.types import Artifact, Cpu, InputSpec, Task  # noqa: E402
from edgekit.verify import TargetVerification, verification_inputs, verify  # noqa: E402
from edgekit.verify_sizes import verify_other_size  # noqa: E402

IMAGE = InputSpec("image", (1, 3, 16, 16), variable_axes=(2, 3), multiple=2)


class Restorer(nn.Module):
    """Halves once and joins what it halved: sizes must be multiples of two."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 16, 3, 2, 1)
        self.up = nn.ConvTranspose2d(16, 8, 4, 2, 1)
        self.head = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        fine = self.norm(self.stem(image)).relu()
        coarse = self.up(self.down(fine).relu()).relu()
        return self.head(torch.cat((coarse, fine), 1))


Parts = tuple[QuantizedModel, LoweredModel, Artifact, Path]


@pytest.fixture(scope="module")
def parts(
    quantize_module: Callable[..., QuantizedModel], tmp_path_factory: pytest.TempPathFactory
) -> Parts:
    torch.manual_seed(0)
    module = Restorer()
    for _ in range(20):
        module(torch.randn(8, 3, 16, 16))
    model = quantize_module(module, IMAGE)
    target = OnnxRuntimeTarget()
    lowered = lower(model, target.profile(Cpu.AVX2), target.unsupported(model.sited))
    folder = tmp_path_factory.mktemp("artifacts")
    artifact = target.export(build_template(model.sited), lowered, folder).wait()
    return model, lowered, artifact, folder


def at_both_sizes(parts: Parts) -> tuple[TargetVerification, TargetVerification]:
    model, lowered, artifact, folder = parts
    captured, name = model.sited.model, artifact.target
    first = verify(
        [artifact],
        {name: lowered},
        folder,
        executed={name: True},
        inputs=verification_inputs(captured, 0, 4),
        threads=1,
    )
    (second,) = verify_other_size(
        first,
        captured,
        [artifact],
        {name: lowered},
        folder,
        executed={name: True},
        why_simulated={},
        seed=0,
        threads=1,
    )
    return first[0], second


def test_intact_artifact_passes(parts: Parts) -> None:
    first, second = at_both_sizes(parts)
    assert first.passed
    assert second.passed
    assert second.simulation_sqnr_db is not None
    assert first.simulation_sqnr_db is not None
    assert second.simulation_sqnr_db <= first.simulation_sqnr_db


def test_artifact_that_fixes_the_size_fails(parts: Parts, tmp_path: Path) -> None:
    model, lowered, artifact, folder = parts
    altered = onnx.load(folder / artifact.model)
    for axis in (2, 3):
        altered.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 16
    (tmp_path / artifact.model).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(altered, tmp_path / artifact.model)
    first, second = at_both_sizes((model, lowered, artifact, tmp_path))
    assert first.passed
    assert not second.passed
    assert second.reason is not None
    assert "at the size 1x3x18x22" in second.reason


def test_network_that_takes_no_such_size_is_told_so() -> None:
    any_size = InputSpec("image", (1, 3, 16, 16), variable_axes=(2, 3))
    notes = capture(Restorer(), [any_size], task=Task.IMAGE_TO_IMAGE).notes
    assert [note for note in notes if "does not take the size 1x3x17x19" in note] == list(notes)
    assert len(notes) == 1
    assert "--input 1x3x256~4x256~4" in notes[0]
    assert capture(Restorer(), [IMAGE], task=Task.IMAGE_TO_IMAGE).notes == ()


@pytest.mark.parametrize(
    ("shape", "multiple", "other"),
    [
        ((1, 3, 256, 256), 4, (1, 3, 260, 268)),
        ((1, 3, 4, 12), 4, (1, 3, 12, 28)),
        ((1, 3, 224, 224), 1, (1, 3, 225, 227)),
    ],
)
def test_other_size(shape: tuple[int, ...], multiple: int, other: tuple[int, ...]) -> None:
    spec = InputSpec("image", shape, variable_axes=(2, 3), multiple=multiple)
    assert other_size(spec).shape == other


def test_fixed_sizes_have_no_other() -> None:
    spec = InputSpec("image", (1, 3, 8, 8))
    assert other_size(spec) == spec
