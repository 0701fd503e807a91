"""What every target must keep, registered ones by themselves: see ``registry.TARGETS``.

A new target is tested by its line in the table. Artifacts are run by their own runtimes here, and
by ONNX Runtime as arithmetic where a target runs only elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.errors import EdgekitError
from edgekit.lowering import LoweredModel, LoweringProfile
from edgekit.quantized import QuantizedModel, lower
from edgekit.registry import RUNNERS, TARGETS, resolve
from edgekit.runners import open_model
from edgekit.simulate import simulate
from edgekit.target import Target
from edgekit.template import build_template
from edgekit.types import Cpu, InputSpec

ir = pytest.importorskip("onnx_ir", reason="exporters write ONNX through onnx_ir")

Quantize = Callable[..., QuantizedModel]


def block(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    """Three convolutions, a sum and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = block(3, 16, 2), block(16, 16), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.right(self.left(x)) + x)
        return self.head(x.mean((2, 3)))


class Separable(nn.Module):
    """Depthwise and grouped convolutions, explicit padding, pools, relu6."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise, self.grouped = (
            block(3, 16),
            block(16, 16, 1, 16),
            block(16, 32, 2, 4),
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.pad(self.stem(x), (0, 1, 0, 1)), 3, 2)
        x = F.relu6(self.grouped(self.depthwise(x)))
        x = F.avg_pool2d(x, 3, 2, ceil_mode=True)  # its last windows reach beyond the edge
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Sequence(nn.Module):
    """1-D convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv1d(4, 16, 5, padding=2), nn.BatchNorm1d(16)
        self.second, self.head = nn.Conv1d(16, 16, 3, stride=2, groups=4), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(F.relu(self.norm(self.first(x))))).mean(2))


class Decoder(nn.Module):
    """Skip connection, upsampling, transposed convolutions; an image comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = block(3, 8), block(8, 16, 2)
        self.up, self.grouped = (
            nn.ConvTranspose2d(16, 8, 2, 2),
            nn.ConvTranspose2d(16, 8, 2, 2, groups=2),
        )
        self.join, self.out = block(16, 8), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        deep = self.deep(skip)
        x = self.join(torch.cat([skip, F.relu(self.up(deep))], 1)) + F.relu(self.grouped(deep))
        return self.out(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Swish(nn.Module):
    """Squeeze and excitation with smooth activations; two outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, 2, bias=False), nn.BatchNorm2d(16)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.silu(self.norm(self.stem(x)))
        gate = self.excite(F.silu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))).sigmoid()
        x = x * gate
        return {"scores": self.head(x.mean((2, 3))), "gate": gate.flatten(1)}


class Tokens(nn.Module):
    """Linear layers over tokens, LayerNorm, and an input of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(20, 16), nn.LayerNorm(16)
        self.wide, self.narrow, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 4)

    def forward(self, ids: Tensor, weights: Tensor) -> Tensor:
        x = self.table(ids)
        x = x + self.narrow(F.relu(self.wide(self.norm(x))))
        return self.head((x * weights[..., None]).mean(1))


class Wide(nn.Sequential):
    """More weights than structure."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(256, 400), nn.ReLU(), nn.Linear(400, 256))


IMAGE = (InputSpec("image", (1, 3, 16, 16)),)
NETWORKS: Mapping[type[nn.Module], tuple[InputSpec, ...]] = {
    Residual: IMAGE,
    Separable: IMAGE,
    Sequence: (InputSpec("signal", (1, 4, 64)),),
    Decoder: IMAGE,
    Swish: IMAGE,
    Tokens: (InputSpec("ids", (1, 7), "int64"), InputSpec("weights", (1, 7))),
    Wide: (InputSpec("x", (1, 256)),),
}


@dataclass(frozen=True)
class Prepared:
    model: QuantizedModel
    template: ir.Model

    def inputs(self, batch: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(7)
        return tuple(
            torch.randn(batch, *spec.shape[1:], generator=generator)
            if spec.dtype == "float32"
            else torch.randint(20, (batch, *spec.shape[1:]), generator=generator)
            for spec in self.model.sited.model.inputs
        )


def settle(module: nn.Module, specs: tuple[InputSpec, ...]) -> None:
    """Give BatchNorms the statistics of some input, as training would."""
    if not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules()):
        return
    module.train()
    for _ in range(30):
        module(*(torch.randn(16, *spec.shape[1:]) for spec in specs))


@pytest.fixture(scope="module")
def prepare(quantize_module: Quantize) -> Callable[[type[nn.Module]], Prepared]:
    made: dict[type[nn.Module], Prepared] = {}

    def get(network: type[nn.Module]) -> Prepared:
        if network not in made:
            torch.manual_seed(0)
            module, specs = network(), NETWORKS[network]
            settle(module, specs)
            model = quantize_module(module, *specs)
            made[network] = Prepared(model, build_template(model.sited))
        return made[network]

    return get


@pytest.fixture
def no_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave engines to the one test that builds them: each takes seconds."""
    monkeypatch.setattr("edgekit.exporters.tensorrt.find_builder", lambda: None)


def run(
    target: Target, path: Path, inputs: tuple[Tensor, ...], prepared: Prepared
) -> list[np.ndarray]:
    names = [spec.name for spec in prepared.model.sited.model.inputs]
    with open_model(target.name, path, threads=1, simulate=not target.executed) as runner:
        found = runner.infer({n: x.numpy() for n, x in zip(names, inputs, strict=True)})
    return [found[spec.name] for spec in prepared.model.sited.model.outputs]


@pytest.mark.parametrize("name", TARGETS)
class TestTarget:
    @pytest.fixture
    def target(self, name: str) -> Target:
        found: Target = resolve(TARGETS, name, "target")()
        missing = found.missing()
        if missing is not None:
            pytest.skip(missing.message)
        return found

    def lowered(self, target: Target, prepared: Prepared) -> LoweredModel:
        return lower(
            prepared.model, target.profile(Cpu.AVX2), target.unsupported(prepared.model.sited)
        )

    def test_name_profile_and_runner(self, target: Target, name: str) -> None:
        assert target.name == name
        assert (name in RUNNERS) == (target.why_simulated is None)
        assert isinstance(target.executed, bool)
        assert not (target.executed and target.why_simulated)
        assert target.activation_bits
        for cpu in Cpu:
            profile = target.profile(cpu)
            assert isinstance(profile, LoweringProfile)
            assert profile.target == name
            assert profile == target.profile(cpu)

    def test_missing_is_an_error_with_a_hint(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(__import__("sys").modules, name, None)  # as if not installed
        missing = resolve(TARGETS, name, "target")().missing()
        if missing is not None:
            assert isinstance(missing, EdgekitError)
            assert "pip install" in missing.hint

    def test_artifact_lies_in_its_own_folder(
        self,
        target: Target,
        prepare: Callable[[type[nn.Module]], Prepared],
        tmp_path: Path,
    ) -> None:
        """The whole export, engines included where a builder is installed."""
        prepared = prepare(Residual)
        before = ir.to_proto(prepared.template).SerializeToString()
        pending = target.export(prepared.template, self.lowered(target, prepared), tmp_path)
        try:
            artifact = pending.wait()
        finally:
            pending.close()
        assert artifact.target == target.name
        assert artifact.model in artifact.files
        written = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
        assert set(artifact.files) == written
        assert all(path.startswith(f"{target.name}/") for path in written)
        assert all((tmp_path / path).stat().st_size > 0 for path in written)
        assert ir.to_proto(prepared.template).SerializeToString() == before

    @pytest.mark.usefixtures("no_engines")
    @pytest.mark.parametrize("network", NETWORKS)
    def test_artifact_computes_its_simulation(
        self,
        target: Target,
        network: type[nn.Module],
        prepare: Callable[[type[nn.Module]], Prepared],
        tmp_path: Path,
    ) -> None:
        prepared = prepare(network)
        lowered = self.lowered(target, prepared)
        path = tmp_path / target.export(prepared.template, lowered, tmp_path).wait().model
        for batch in (1, 8):
            inputs = prepared.inputs(batch)
            got = run(target, path, inputs, prepared)
            for value, wanted in zip(got, simulate(lowered, *inputs), strict=True):
                expected = wanted.numpy()
                assert value.shape == expected.shape
                assert value.dtype == np.float32
                error = np.linalg.norm(value - expected) / np.linalg.norm(expected)
                if lowered.profile.float16:
                    # FP16 keeps 11 bits, 5e-4 relative, and a code differs where that matters:
                    # single codes are 0.4 % of a range, few of them 1 % of a norm
                    assert error < 0.03
                    continue
                # Integer sums are exact on both sides; float32 epilogues round at 1e-7, so that a
                # value on the edge of two codes may take the other one. In shallow nets few do.
                close = np.abs(value - expected) <= 1e-4 * np.abs(expected).max()
                assert close.mean() > 0.95
                assert error < 0.01

    @pytest.mark.usefixtures("no_engines")
    def test_every_layer_runs_on_integers(
        self,
        target: Target,
        prepare: Callable[[type[nn.Module]], Prepared],
        tmp_path: Path,
    ) -> None:
        if not target.executed:
            pytest.skip(f"{target.name} is not executed here")
        for network, count in ((Residual, 4), (Separable, 4)):
            prepared = prepare(network)
            folder = tmp_path / network.__name__
            folder.mkdir()
            lowered = self.lowered(target, prepared)
            path = folder / target.export(prepared.template, lowered, folder).wait().model
            with open_model(target.name, path, threads=1) as runner:
                layers = runner.executed_layers()
            assert [layer.precision for layer in layers] == ["int8"] * count

    @pytest.mark.usefixtures("no_engines")
    def test_export_repeats_byte_for_byte(
        self,
        target: Target,
        prepare: Callable[[type[nn.Module]], Prepared],
        tmp_path: Path,
    ) -> None:
        prepared = prepare(Residual)
        contents = []
        for attempt in ("first", "second"):
            folder = tmp_path / attempt
            folder.mkdir()
            lowered = self.lowered(target, prepared)
            artifact = target.export(prepared.template, lowered, folder).wait()
            contents.append({path: (folder / path).read_bytes() for path in artifact.files})
        assert contents[0] == contents[1]

    @pytest.mark.usefixtures("no_engines")
    def test_file_is_much_smaller_than_the_float_network(
        self,
        target: Target,
        prepare: Callable[[type[nn.Module]], Prepared],
        tmp_path: Path,
    ) -> None:
        prepared = prepare(Wide)
        artifact = target.export(prepared.template, self.lowered(target, prepared), tmp_path).wait()
        size = sum((tmp_path / path).stat().st_size for path in artifact.files)
        weights = 2 * 256 * 400
        # one byte for each weight, up to 17 for scales, zero points and biases of 656 channels,
        # and 25 kB of structure (OpenVINO's XML is the largest)
        assert weights < size < weights + 17 * 656 + 25_000


def test_every_runner_is_of_a_target() -> None:
    assert RUNNERS.keys() <= TARGETS.keys()
