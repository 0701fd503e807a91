"""Verification runs what was written: intact files pass, altered ones fail and say why."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.capture import CapturedModel, capture
from edgekit.lowering import LoweredModel
from edgekit.quantized import QuantizedModel, lower
from edgekit.registry import TARGETS, resolve
from edgekit.template import build_template
from edgekit.types import Artifact, Cpu, InputSpec, Task
from edgekit.verify import (
    KEPT,
    MIN_SQNR_DB,
    TargetVerification,
    VerificationInputs,
    require_agreement,
    verification_inputs,
    verify,
)

onnx = pytest.importorskip("onnx", reason="alters exported files")
ir = pytest.importorskip("onnx_ir", reason="exporters write ONNX through onnx_ir")
pytest.importorskip("onnxruntime", reason="runs exported files")


EXECUTED = ("onnxruntime", "openvino")


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8)
        self.body, self.head = nn.Conv2d(8, 16, 3), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.body(F.relu(self.norm(self.stem(x)))))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def model(quantize_module: Callable[..., QuantizedModel]) -> QuantizedModel:
    torch.manual_seed(0)
    module = Network()
    for _ in range(30):  # statistics that belong to some input
        module(torch.randn(16, 3, 16, 16))
    made = quantize_module(module, InputSpec("image", (1, 3, 16, 16)))
    sited = made.sited
    classifier = replace(sited.model, task=Task.CLASSIFICATION)
    return replace(made, sited=replace(sited, model=classifier))


@pytest.fixture(scope="module")
def lowered(model: QuantizedModel) -> dict[str, LoweredModel]:
    targets = {name: resolve(TARGETS, name, "target")() for name in TARGETS}
    return {
        name: lower(model, target.profile(Cpu.AVX2), target.unsupported(model.sited))
        for name, target in targets.items()
    }


@pytest.fixture(scope="module")
def template(model: QuantizedModel) -> ir.Model:
    return build_template(model.sited)


@pytest.fixture(scope="module")
def written(
    template: ir.Model,
    lowered: dict[str, LoweredModel],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, Artifact]]:
    """A folder with the artifact of every target that can be written, without engines."""
    folder = tmp_path_factory.mktemp("artifacts")
    artifacts = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgekit.exporters.tensorrt.find_builder", lambda: None)
        for name, decisions in lowered.items():
            target = resolve(TARGETS, name, "target")()
            if target.missing() is None:
                artifacts[name] = target.export(template, decisions, folder).wait()
    return folder, artifacts


@pytest.fixture(scope="module")
def inputs(model: QuantizedModel) -> VerificationInputs:
    return verification_inputs(model.sited.model, seed=0)


def check(
    artifact: Artifact,
    lowered: dict[str, LoweredModel],
    folder: Path,
    inputs: VerificationInputs,
) -> TargetVerification:
    executed = resolve(TARGETS, artifact.target, "target")().executed
    (result,) = verify(
        [artifact],
        lowered,
        folder,
        executed={artifact.target: executed},
        inputs=inputs,
        threads=1,
    )
    return result


def test_intact_artifacts_pass(
    written: tuple[Path, dict[str, Artifact]],
    lowered: dict[str, LoweredModel],
    inputs: VerificationInputs,
) -> None:
    folder, artifacts = written
    begun: list[str] = []
    results = verify(
        list(artifacts.values()),
        lowered,
        folder,
        executed={name: name in EXECUTED for name in artifacts},
        inputs=inputs,
        threads=1,
        on_target=begun.append,
    )
    assert [result.target for result in results] == begun == list(artifacts)
    for result in results:
        assert result.passed, result.reason
        assert result.executed == (result.target in EXECUTED)
        assert (result.reason is None) == result.executed
        assert result.match == 100.0
        # shallow: a few codes off at most, see the exporters' contract; FP16 a few more
        assert result.simulation_sqnr_db is not None
        assert result.simulation_sqnr_db > (30 if result.target == "tensorrt" else 40)
        # three layers of 8 bits lose little, but they lose something
        assert result.sqnr_db is not None
        assert 20 < result.sqnr_db < 60
        assert (result.integer_layers, result.weighted_layers) == (3, 3)
        assert result.float_layers == {}
        if result.executed:
            assert {layer.name for layer in result.layers} >= {"stem", "body"}
            assert {layer.precision for layer in result.layers} == {"int8"}
            assert result.versions
        plain = result.to_dict()
        assert plain["passed"] is True
        assert set(plain["float_layers"]) == set()


def altered(
    written: tuple[Path, dict[str, Artifact]],
    folder: Path,
    change: Callable[[onnx.ModelProto], None],
) -> Artifact:
    """A copy of ONNX Runtime's file with one thing changed."""
    source, artifacts = written
    artifact = artifacts["onnxruntime"]
    proto = onnx.load(source / artifact.model)
    change(proto)
    path = folder / artifact.model
    path.parent.mkdir(parents=True)
    onnx.save(proto, path)
    return artifact


def set_constant(
    proto: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    (tensor,) = (t for t in proto.graph.initializer if t.name == name)
    value = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(change(value).astype(value.dtype), name))


def shrink_a_scale(proto: onnx.ModelProto) -> None:
    set_constant(proto, "relu.q.scale", lambda scale: scale / 4)


def negate_a_channel(proto: onnx.ModelProto) -> None:
    def negate(codes: np.ndarray) -> np.ndarray:
        changed = codes.copy()
        changed[:4] *= -1
        return changed

    set_constant(proto, "body.weight.codes", negate)


def drop_a_bias(proto: onnx.ModelProto) -> None:
    set_constant(proto, "head.bias.codes", np.zeros_like)


@pytest.mark.parametrize("change", [shrink_a_scale, negate_a_channel, drop_a_bias])
def test_altered_artifact_fails_with_the_reason(
    written: tuple[Path, dict[str, Artifact]],
    lowered: dict[str, LoweredModel],
    inputs: VerificationInputs,
    change: Callable[[onnx.ModelProto], None],
    tmp_path: Path,
) -> None:
    artifact = altered(written, tmp_path, change)
    result = check(artifact, lowered, tmp_path, inputs)
    assert not result.passed
    assert result.reason is not None
    assert "differs from its simulation" in result.reason
    assert result.simulation_sqnr_db is not None
    assert result.match is not None
    assert result.simulation_sqnr_db < MIN_SQNR_DB or result.match < 99
    assert f"{result.simulation_sqnr_db:.1f} dB" in result.reason


def test_output_that_is_not_finite_fails(
    written: tuple[Path, dict[str, Artifact]],
    lowered: dict[str, LoweredModel],
    inputs: VerificationInputs,
    tmp_path: Path,
) -> None:
    def poison(proto: onnx.ModelProto) -> None:
        set_constant(proto, "head.weight.scale", lambda scale: np.full_like(scale, np.nan))

    result = check(altered(written, tmp_path, poison), lowered, tmp_path, inputs)
    assert not result.passed
    assert result.to_dict()["simulation_sqnr_db"] is None  # JSON knows no infinity


@pytest.mark.parametrize(
    "content", [None, b"", b"not a model"], ids=["missing", "empty", "garbage"]
)
def test_file_that_cannot_be_opened_fails(
    written: tuple[Path, dict[str, Artifact]],
    lowered: dict[str, LoweredModel],
    inputs: VerificationInputs,
    content: bytes | None,
    tmp_path: Path,
) -> None:
    artifact = written[1]["onnxruntime"]
    if content is not None:
        (tmp_path / artifact.model).parent.mkdir()
        (tmp_path / artifact.model).write_bytes(content)
    result = check(artifact, lowered, tmp_path, inputs)
    assert not result.passed
    assert not result.executed
    assert result.match is None
    assert result.reason


def test_layer_that_ran_in_float_is_listed(
    written: tuple[Path, dict[str, Artifact]],
    lowered: dict[str, LoweredModel],
    inputs: VerificationInputs,
    tmp_path: Path,
) -> None:
    """Without a quantizer behind it, ONNX Runtime runs a convolution in float."""

    def free_the_body(proto: onnx.ModelProto) -> None:
        (quantize,) = (n for n in proto.graph.node if n.name == "relu_1.q.quantize")
        (dequantize,) = (n for n in proto.graph.node if n.name == "relu_1.q.dequantize")
        relu = onnx.helper.make_node("Relu", [quantize.input[0]], [dequantize.output[0]])
        at = list(proto.graph.node).index(quantize)
        proto.graph.node.insert(at, relu)
        proto.graph.node.remove(quantize)
        proto.graph.node.remove(dequantize)

    result = check(altered(written, tmp_path, free_the_body), lowered, tmp_path, inputs)
    assert result.passed, result.reason
    assert result.float_layers == {"body": "planned for INT8, but the runtime ran it in float32"}
    assert (result.integer_layers, result.weighted_layers) == (2, 3)


def test_planned_float_layers_keep_their_reason(
    model: QuantizedModel, template: ir.Model, inputs: VerificationInputs, tmp_path: Path
) -> None:
    target = resolve(TARGETS, "onnxruntime", "target")()
    decisions = lower(model, target.profile(Cpu.AVX2), {"conv2d_1": "because it was asked for"})
    artifact = target.export(template, decisions, tmp_path).wait()
    result = check(artifact, {"onnxruntime": decisions}, tmp_path, inputs)
    assert result.passed, result.reason
    assert result.float_layers == {"body": "because it was asked for"}


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("output", "other", "the artifact has no output 'output'; it has other"),
        (None, None, r"output 'output' is \[3\] for each sample in place of \[6\]"),
    ],
    ids=["missing", "wrong shape"],
)
def test_output_that_is_not_what_the_network_returns_fails(
    written: tuple[Path, dict[str, Artifact]],
    lowered: dict[str, LoweredModel],
    inputs: VerificationInputs,
    old: str | None,
    new: str | None,
    reason: str,
    tmp_path: Path,
) -> None:
    def change(proto: onnx.ModelProto) -> None:
        (output,) = proto.graph.output
        (last,) = (node for node in proto.graph.node if output.name in node.output)
        if new is not None:
            last.output[list(last.output).index(old)] = output.name = new
            return
        last.output[0] = "all"
        starts = [("starts", [0]), ("ends", [3]), ("axes", [1])]
        for name, value in starts:
            tensor = onnx.numpy_helper.from_array(np.array(value), name)
            proto.graph.initializer.append(tensor)
        names = ["all", *(name for name, _ in starts)]
        proto.graph.node.append(onnx.helper.make_node("Slice", names, [output.name]))
        output.type.tensor_type.shape.dim[1].dim_value = 3

    result = check(altered(written, tmp_path, change), lowered, tmp_path, inputs)
    assert result.executed
    assert not result.passed
    assert result.match is None
    assert result.reason is not None
    assert re.fullmatch(reason, result.reason)


class Sequences(nn.Module):
    """A recurrent stack, a layer called twice, outputs with the batch elsewhere or nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(8, 12, num_layers=2, batch_first=True)
        self.twice, self.scale = nn.Linear(12, 12), nn.Parameter(torch.randn(5, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        y = self.twice(F.relu(self.twice(self.memory(x)[0])))
        return y.transpose(0, 1), y.reshape(-1, 12), y.mean(1), self.scale * 2


def test_any_layer_and_any_layout_of_outputs(
    quantize_module: Callable[..., QuantizedModel], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    made = quantize_module(Sequences(), (6, 8))
    model = made.sited.model
    assert model.outputs[0].shape == (6, -1, 12)
    decisions, artifacts = {}, []
    template = build_template(made.sited)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgekit.exporters.tensorrt.find_builder", lambda: None)
        for name in TARGETS:
            target = resolve(TARGETS, name, "target")()
            if target.missing() is None:
                decisions[name] = lower(made, target.profile(Cpu.AVX2), {})
                artifacts.append(target.export(template, decisions[name], tmp_path).wait())
    chosen = verification_inputs(model, seed=0)
    shapes = [output.shape for output in chosen.reference]
    assert shapes == [(KEPT, 6, 12), (KEPT, 6, 12), (KEPT, 12), (KEPT, 5, 2)]
    np.testing.assert_allclose(chosen.reference[0], chosen.reference[1], rtol=1e-5, atol=1e-6)
    results = verify(
        artifacts,
        decisions,
        tmp_path,
        executed={name: name in EXECUTED for name in decisions},
        inputs=chosen,
        threads=1,
    )
    for result in results:
        assert result.passed, result.reason
        assert set(result.float_layers) == {"memory.l0", "memory.l1"}
        assert all("recurrent layers" in reason for reason in result.float_layers.values())
        assert (result.integer_layers, result.weighted_layers) == (2, 4)


class Dense(nn.Module):
    """A class for every position: three scores, or two that are almost the same."""

    def __init__(self, ties: bool) -> None:
        super().__init__()
        self.ties, self.stem, self.head = ties, nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(F.relu(self.stem(x)))
        return torch.cat([y[:, :1], y[:, :1] + 1e-6 * y[:, 1:2]], 1) if self.ties else y


class Lone(nn.Module):
    """One logit, which decides by its sign."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.body(x)))


class OneAtATime(nn.Module):
    """A classifier that fixes the batch at 1."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, 2), nn.Linear(8 * 49, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.stem(x)).view(1, -1))


def verified(
    made: QuantizedModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[VerificationInputs, list[TargetVerification]]:
    """What every target that can be written makes of a classifier."""
    sited = made.sited
    classifies = replace(sited, model=replace(sited.model, task=Task.CLASSIFICATION))
    made = replace(made, sited=classifies)
    monkeypatch.setattr("edgekit.exporters.tensorrt.find_builder", lambda: None)
    template, chosen = build_template(classifies), verification_inputs(classifies.model, seed=0)
    decisions, artifacts = {}, []
    for name in TARGETS:
        target = resolve(TARGETS, name, "target")()
        if target.missing() is None:
            decisions[name] = lower(made, target.profile(Cpu.AVX2), {})
            artifacts.append(target.export(template, decisions[name], folder).wait())
    executed = {name: name in EXECUTED for name in decisions}
    return chosen, verify(artifacts, decisions, folder, executed=executed, inputs=chosen, threads=1)


@pytest.mark.parametrize("ties", [False, True])
def test_positions_are_compared_where_their_class_is_decided(
    quantize_module: Callable[..., QuantizedModel],
    ties: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    made = quantize_module(Dense(ties), (3, 16, 16))
    _, results = verified(made, tmp_path, monkeypatch)
    for result in results:
        assert result.passed, result.reason
        if ties:
            assert (result.match, result.compared) == (None, 0)
        else:
            assert result.match is not None
            assert result.match > 99
            assert KEPT < result.compared < KEPT * 14 * 14


def test_lone_logit_is_compared_where_its_sign_is_decided(
    quantize_module: Callable[..., QuantizedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    _, results = verified(quantize_module(Lone(), (8,)), tmp_path, monkeypatch)
    for result in results:
        assert result.passed, result.reason
        assert result.match == 100.0
        assert 0 < result.compared < KEPT


def test_classes_of_a_network_that_takes_one_sample_at_a_time(
    quantize_module: Callable[..., QuantizedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    made = quantize_module(OneAtATime(), (3, 16, 16))
    assert not made.sited.model.batch
    chosen, results = verified(made, tmp_path, monkeypatch)
    assert chosen.reference[0].shape == (KEPT, 6), "classes stand on axis 1"
    for result in results:
        assert result.passed, result.reason
        assert result.agreement is not None
        # a share of the 32 samples, not of their 6 logits
        assert result.agreement * KEPT % 100 == pytest.approx(0.0, abs=1e-6)


def classifier(task: Task) -> CapturedModel:
    torch.manual_seed(0)
    return capture(Network(), [InputSpec("image", (1, 3, 16, 16))], task=task)


def test_inputs_of_a_classifier_are_the_sure_ones() -> None:
    model = classifier(Task.CLASSIFICATION)
    chosen = verification_inputs(model, 0)
    (images,) = chosen.feeds.values()
    assert list(chosen.feeds) == ["image"]
    assert images.shape == (KEPT, 1, 3, 16, 16)
    (logits,) = chosen.reference
    assert model(torch.from_numpy(images[:, 0]))[0].numpy() == pytest.approx(logits, abs=1e-5)
    everything = verification_inputs(classifier(Task.OTHER), 0)

    def margins(value: np.ndarray) -> np.ndarray:
        best = np.sort(value, axis=1)
        found: np.ndarray = best[:, -1] - best[:, -2]
        return found

    assert margins(logits).min() > np.median(margins(everything.reference[0])) * 0.5
    assert margins(logits).mean() > margins(everything.reference[0]).mean()


def test_inputs_follow_the_seed() -> None:
    model = classifier(Task.CLASSIFICATION)
    first, again, other = (verification_inputs(model, seed).feeds["image"] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_agreement_with_float_can_be_demanded() -> None:
    results = [
        TargetVerification("good", executed=True, passed=True, agreement=99.5),
        TargetVerification("poor", executed=True, passed=True, agreement=90.0),
        TargetVerification("broken", executed=True, passed=False, agreement=10.0),
    ]
    assert require_agreement(results, None) == []
    assert require_agreement(results, 90.0) == []
    (message,) = require_agreement(results, 95.0)
    assert message.startswith("poor: ")
    assert "90.0 %" in message
    assert "95 %" in message
