"""DCAP through calibration and lowering: what stays float, and what its classes are good for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from edgekit import calibrate as calibrate_module  # noqa: E402
from edgekit.artifacts import lower_for, quantize_observed  # noqa: E402
from edgekit.calibrate import calibrate, observe_made  # noqa: E402
from edgekit.calibration.clusterq import ClusterQ, Making, Schedule  # noqa: E402
from edgekit.calibration.renorm import Renorm  # noqa: E402
from edgekit.capture import CapturedModel  # noqa: E402
from edgekit.fidelity import agreement_percent  # noqa: E402
from edgekit.graph import WEIGHTED, OpKind, op_kind, op_name  # noqa: E402
from edgekit.loading import LoadedModel  # noqa: E402
from edgekit.models.batchnorm import recalibrate  # noqa: E402
from edgekit.models.dcap import Backbone, ConvBlock, Dcap, ResidualBlock  # noqa: E402
from edgekit.simulate import simulate  # noqa: E402
from edgekit.synthetic import SyntheticSet  # noqa: E402
from edgekit.target_choice import target_named  # noqa: E402
from edgekit.types import Cpu, InputSpec, Progress, Task, no_progress  # noqa: E402

SIDE, CLASSES = 16, 5
TARGETS = ("onnxruntime", "openvino", "tensorrt")


def loaded(block: type[ConvBlock | ResidualBlock] = ConvBlock) -> LoadedModel:
    """A small one whose attention is far from even and whose tail scales every channel anew."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Dcap(Backbone(block, (8, 12)), SIDE, CLASSES)
        nn.init.normal_(network.pooling.score.weight, 0.0, 2.0)
        nn.init.uniform_(network.backbone.tail.weight, -2.0, 2.0)  # negative ones as well
        nn.init.normal_(network.backbone.tail.bias)
        recalibrate(network, [torch.randn(32, 3, SIDE, SIDE)])
    spec = InputSpec("image", (1, 3, SIDE, SIDE))
    return LoadedModel(network, (spec,), None, Task.EMBEDDING, None, "", "state_dict", "")


@pytest.mark.parametrize("block", [ConvBlock, ResidualBlock])
@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_every_layer_on_integers_and_the_attention_in_float(
    block: type[ConvBlock | ResidualBlock], scheme: str
) -> None:
    captured = loaded(block).capture()
    images = torch.randn(16, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    reference = captured(images)[0].numpy()
    quantized = quantize_observed(captured, Renorm(samples=16).observe(captured), scheme)
    for name in TARGETS:
        lowered = lower_for(quantized, target_named(name), Cpu.AVX2)
        nodes = list(lowered.sited.model.graph.graph.nodes)
        layers = {node.name for node in nodes if op_kind(node) in WEIGHTED}
        assert layers <= lowered.placement.integer
        assert lowered.placement.float_layers == {}
        # the tail behind a max pool cannot be folded; it is computed in float as it is
        tails = [node.name for node in nodes if op_kind(node) is OpKind.BATCH_NORM]
        assert len(tails) == 1
        attention = [
            node.name
            for node in nodes
            if op_name(node) in ("softmax", "_softmax", "sum") or op_kind(node) is OpKind.MUL
        ]
        assert len(attention) == 3
        assert lowered.placement.integer.isdisjoint({*tails, *attention})
        found = simulate(lowered, images)[0].numpy()
        # random weights on noise: no structure to spare; trained ones have 99.9 and 99.6 %
        least = 98.5 if scheme == "w8a8" else 95.0
        assert agreement_percent(Task.EMBEDDING, reference, found) > least, name


def test_clusterq_aims_at_the_classes_of_the_teacher() -> None:
    model = loaded()
    teacher = model.capture_teacher()
    assert teacher is not None
    engine = ClusterQ(
        samples=4,
        schedule=Schedule(epochs=1, steps=1, warmup=0, batch=4, classes=2),
        making=Making(width=4),
    )
    made = engine.synthesize(teacher)
    assert (made.facts["classes"], made.facts["classes_from"]) == (CLASSES, "logits")
    captured = model.capture()
    statistics = observe_made(captured, made, 0)
    floats = {node.name for node in captured.graph.graph.nodes if node.op == "call_function"}
    assert set(statistics.tensors) & floats  # of the embedding network, not of the teacher


def test_calibration_makes_inputs_for_the_teacher_and_observes_the_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[CapturedModel] = []

    class Recording:
        def synthesize(
            self,
            model: CapturedModel,
            *,
            checkpoint: Path | None = None,
            progress: Progress = no_progress,
        ) -> SyntheticSet:
            seen.append(model)
            inputs = torch.from_numpy(np.random.default_rng(0).normal(size=(8, 3, SIDE, SIDE)))
            return SyntheticSet((inputs.float(),), None, "distill")

    monkeypatch.setattr(calibrate_module, "synthesizer", lambda *_: Recording())
    model = loaded()
    captured, teacher = model.capture(), model.capture_teacher()
    with_teacher = calibrate(captured, "distill", samples=8, seed=0, teacher=teacher)
    without = calibrate(captured, "distill", samples=8, seed=0)
    assert seen == [teacher, captured]
    assert set(with_teacher.tensors) == set(without.tensors)
