"""Allocation under a budget against exhaustive search, and through the command line."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the host part needs the extra 'torch'")
pytest.importorskip("onnxruntime", reason="writes and runs its artifacts")

from torch import nn  # noqa: E402

from edgekit.budget import Budget, BudgetKind  # noqa: E402
from edgekit.capture import capture  # noqa: E402
from edgekit.cli import main  # noqa: E402
from edgekit.error_shares import channel_variance, output_shares  # noqa: E402
from edgekit.errors import ConfigError  # noqa: E402
from edgekit.mixed import float_order, frontier, within_drop, within_size  # noqa: E402
from edgekit.observe import observe_set  # noqa: E402
from edgekit.quantized import QuantizedModel  # noqa: E402
from edgekit.sensitivity import (  # noqa: E402
    LayerCost,
    Sensitivity,
    expected_drop,
    measure_sensitivity,
)
from edgekit.sites import insert_sites  # noqa: E402
from edgekit.synthetic import SyntheticSet  # noqa: E402
from edgekit.types import InputSpec, LayerBits, Task  # noqa: E402

Capture = pytest.CaptureFixture[str]
TASK = Task.CLASSIFICATION
QUANTIZE = (
    *("quantize", "wide.pt", "--arch", "wide:build", "--input", "1x3x16x16"),
    *("--effort", "instant", "--targets", "onnxruntime"),
)
OVERHEAD = 256  # bytes that a narrow layer takes beside its weights, as the allocation counts them


def costs(seed: int, count: int = 7) -> Sensitivity:
    random = np.random.default_rng(seed)
    layers = tuple(
        LayerCost(
            f"layer{k}",
            wide=float(random.uniform(1e-5, 1e-4)),
            narrow=None if k == 2 else float(random.lognormal(-7, 1)),
            values=int(random.integers(1, 50)) * 2000,
            work=int(random.integers(1, 100)) * 1000,
        )
        for k in range(count)
    )
    return Sensitivity(layers, rest=1e-4)


def saved(layer: LayerCost) -> int:
    return layer.values // 2 - OVERHEAD


@pytest.mark.parametrize("seed", range(5))
def test_no_other_set_of_layers_is_smaller_with_less_error(seed: int) -> None:
    """All 64 sets of the six layers that may be narrow."""
    sensitivity = costs(seed)
    able = [layer for layer in sensitivity.layers if layer.narrow is not None]
    whole = 1_000_000
    points = frontier(sensitivity, TASK, whole)
    assert [len(point.narrow) for point in points] == list(range(len(able) + 1))
    assert points[0].drop == pytest.approx(expected_drop(TASK, sensitivity.base))
    for point in points:
        own = [layer for layer in able if layer.name in point.narrow]
        assert point.size_bytes == whole - sum(map(saved, own))
        error = sum(layer.narrow or 0.0 for layer in own)
        assert point.drop == pytest.approx(expected_drop(TASK, sensitivity.base + error))
        for count in range(len(able) + 1):
            for other in itertools.combinations(able, count):
                if sum(map(saved, other)) >= whole - point.size_bytes:
                    assert sum(layer.narrow or 0.0 for layer in other) >= error * (1 - 1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_within_a_size_no_layer_is_narrow_in_vain(seed: int) -> None:
    sensitivity = costs(seed)
    by_name = {layer.name: layer for layer in sensitivity.layers}
    whole = 1_000_000
    points = frontier(sensitivity, TASK, whole)
    most = (points[0].size_bytes + points[-1].size_bytes) / 2
    found = within_size(points, sensitivity, TASK, Budget(BudgetKind.SIZE, most), 4_000_000)
    assert found.size_bytes <= most
    assert found.size_bytes == whole - sum(saved(by_name[name]) for name in found.narrow)
    for name in found.narrow:
        assert found.size_bytes + saved(by_name[name]) > most
    share = Budget(BudgetKind.SHARE, most / 4_000_000)
    assert within_size(points, sensitivity, TASK, share, 4_000_000) == found


def test_within_a_drop_the_smallest_is_taken() -> None:
    points = frontier(costs(0), TASK, 1_000_000)
    budget = (points[3].drop + points[4].drop) / 2
    assert within_drop(points, Budget(BudgetKind.DROP, budget)) == points[3]


def test_what_cannot_be_met_names_what_can() -> None:
    sensitivity = costs(1)
    points = frontier(sensitivity, TASK, 1_000_000)
    with pytest.raises(ConfigError, match="8 bits in all layers") as caught:
        within_drop(points, Budget(BudgetKind.DROP, points[0].drop / 2))
    nearest = float(caught.value.hint.split("--max-drop ")[1].split(";")[0])
    assert within_drop(points, Budget(BudgetKind.DROP, nearest)).narrow == ()
    for kind, unit in ((BudgetKind.SIZE, "kB"), (BudgetKind.SHARE, "x")):
        with pytest.raises(ConfigError, match=f"'{points[-1].narrow[-1]}'") as caught:
            within_size(points, sensitivity, TASK, Budget(kind, 0.01), 4_000_000)
        text = caught.value.hint.split("--max-size ")[1]
        value = float(text.removesuffix(unit)) * (1e3 if unit == "kB" else 1)
        met = within_size(points, sensitivity, TASK, Budget(kind, value), 4_000_000)
        assert met.size_bytes < 1.02 * points[-1].size_bytes


def test_float_layers_are_those_that_integers_harm_most_for_their_work() -> None:
    layers = tuple(
        LayerCost(name, wide, None, 10, work)
        for name, wide, work in (("a", 1.0, 10), ("b", 1.0, 2), ("c", 3.0, 10), ("d", 1.0, 0))
    )
    assert float_order(Sensitivity(layers, 0.0)) == ("b", "c", "a")


class Branches(nn.Module):
    """A sum of two independent branches, one of three times the other's amplitude."""

    def __init__(self) -> None:
        super().__init__()
        self.small = nn.Conv2d(2, 2, 1, bias=False)
        self.large = nn.Conv2d(2, 2, 1, bias=False)
        with torch.no_grad():
            self.small.weight.copy_(torch.eye(2)[..., None, None])
            self.large.weight.copy_(3 * torch.eye(2)[..., None, None])

    def forward(self, x: Any) -> Any:
        first, second = x.split(2, 1)
        return self.small(first) + self.large(second)


def test_a_sum_dilutes_by_the_share_in_its_variance() -> None:
    captured = capture(Branches().eval(), [InputSpec("x", (1, 4, 8, 8))])
    generator = torch.Generator().manual_seed(0)
    made = SyntheticSet((torch.randn(64, 4, 8, 8, generator=generator),), None, "test")
    statistics = observe_set(captured, made, 32, seed=0)
    sited = insert_sites(captured)
    shares = output_shares(sited, statistics)
    nodes = {site.tensor: site.consumer for site in sited.sites if site.role.value == "weight"}
    small, large = (shares[consumer] for consumer in nodes.values())
    # 1 / 10 and 9 / 10 of the variance; 8192 values of each leave 3 % at three deviations
    assert small == pytest.approx(0.1, rel=0.05)
    assert large == pytest.approx(0.9, rel=0.05)


def test_variance_is_around_the_mean_of_each_channel() -> None:
    captured = capture(Branches().eval(), [InputSpec("x", (1, 4, 8, 8))])
    offsets = torch.tensor([0.0, 10.0, -5.0, 3.0])[:, None, None]
    noise = torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    statistics = observe_set(captured, SyntheticSet((noise + offsets,), None, "test"), 32, seed=0)
    assert channel_variance(statistics.tensors["x"]) == pytest.approx(1.0, rel=0.05)


def test_the_error_of_a_layer_is_that_of_its_output(
    quantize_module: Callable[..., QuantizedModel],
) -> None:
    """A single layer, whose error nothing dilutes, against its weights run on the same inputs."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6)).eval()
    with torch.no_grad():
        module(torch.randn(64, 8, 12, 12))
    model = quantize_module(module, (8, 12, 12), scheme="w4a8", bits={"0": LayerBits(4, 8)})
    (found,) = measure_sensitivity(model).layers
    nearest = model.codes["0"].dequantize()
    weight = module[0].weight.detach() * module[1].weight[:, None, None, None]
    x = torch.randn(256, 8, 12, 12)
    float_output, output = (nn.functional.conv2d(x, w) for w in (weight, nearest))
    error = (output - float_output).var((0, 2, 3)).sum() / float_output.var((0, 2, 3)).sum()
    assert found.narrow is not None
    # white inputs leave GPTQ nothing to balance; calibration noise is nearly white over a kernel
    assert 0.2 * error < found.narrow < 1.3 * error
    assert found.wide < found.narrow / 20  # a step of 8 bits is 16 times smaller
    assert found.values == 8 * 6 * 9
    assert found.work == found.values * 100


def test_tasks_have_their_own_measure() -> None:
    # cosine of a vector and itself plus an orthogonal error of relative square e: 1 - e / 2
    assert expected_drop(Task.EMBEDDING, 1e-3) == pytest.approx(
        100 * (1 - (1 + 1e-3) ** -0.5), 1e-2
    )
    # 1 - |error| / |reference|
    assert expected_drop(Task.IMAGE_TO_IMAGE, 1e-4) == pytest.approx(1.0)
    assert expected_drop(TASK, 4e-4) == pytest.approx(2 * expected_drop(TASK, 1e-4))


WIDE = """
from torch import nn

def build():
    def block(i, o, s):
        return [nn.Conv2d(i, o, 3, s, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
    return nn.Sequential(
        *block(3, 16, 1), *block(16, 64, 2), *block(64, 96, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10),
    )
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixed")
    (path / "wide.py").write_text(WIDE, encoding="utf-8")
    namespace: dict[str, Any] = {}
    exec(WIDE, namespace)  # the file's own text
    torch.manual_seed(0)
    module = namespace["build"]().train()
    with torch.no_grad():
        module(torch.randn(64, 3, 16, 16))
    torch.save(module.state_dict(), path / "wide.pt")
    return path


@pytest.fixture
def here(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "wide", raising=False)
    return tmp_path


def document_of(result: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((result / "report.json").read_text(encoding="utf-8"))
    return document


def test_a_size_is_kept_and_the_recipe_repeats_it(here: Path) -> None:
    words = (*QUANTIZE, "--scheme", "mixed", "--max-size", "0.24x", "--out", "first")
    assert main(list(words)) == 0
    document = document_of(here / "first")
    mixed = document["calibration"]["decisions"]["mixed"]
    size = (here / "first/onnxruntime/model.onnx").stat().st_size
    assert size <= 0.24 * mixed["float_bytes"] < mixed["wide_bytes"]
    assert size <= mixed["expected_size_bytes"] + OVERHEAD
    widths = document["recipe"]["bits"]
    assert sorted(widths) == ["0", "11", "3", "6"]
    assert {tuple(width) for width in widths.values()} == {(4, 8), (8, 8)}
    assert document["targets"]["onnxruntime"]["status"] == "ok"
    assert document["targets"]["onnxruntime"]["integer_layers"] == 4
    again = ("quantize", "wide.pt", "--arch", "wide:build", "--recipe", "first/recipe.json")
    assert main([*again, "--out", "second"]) == 0
    first, second = (here / f"{name}/onnxruntime/model.onnx" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def test_a_file_that_ends_too_large_fails(here: Path, capsys: Capture) -> None:
    """Every layer is said to save a kilobyte more than it does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgekit.mixed._OVERHEAD", -1024)
        words = (*QUANTIZE, "--scheme", "mixed", "--max-size", "0.155x", "--out", "out")
        assert main(list(words)) == 1
    assert "more than --max-size 0.155x allows" in capsys.readouterr().err
    document = document_of(here / "out")
    float_bytes = document["calibration"]["decisions"]["mixed"]["float_bytes"]
    assert (here / "out/onnxruntime/model.onnx").stat().st_size > 0.155 * float_bytes


def test_a_drop_bounds_what_is_expected(here: Path) -> None:
    assert main([*QUANTIZE, "--scheme", "mixed", "--max-drop", "1.2", "--out", "out"]) == 0
    mixed = document_of(here / "out")["calibration"]["decisions"]["mixed"]
    assert mixed["expected_drop"] <= 1.2
    larger = [
        p["drop"] for p in mixed["frontier"] if p["size_bytes"] < mixed["expected_size_bytes"]
    ]
    assert all(drop > 1.2 for drop in larger)


def test_a_picture_of_the_frontier(here: Path) -> None:
    pytest.importorskip("matplotlib", reason="draws the picture")
    assert main([*QUANTIZE, "--scheme", "mixed", "--out", "out"]) == 0
    assert (here / "out/mixed.png").read_bytes().startswith(b"\x89PNG")


def test_a_generous_time_keeps_all_layers_in_float(here: Path) -> None:
    assert main([*QUANTIZE, "--scheme", "mixed", "--max-latency", "10s", "--out", "out"]) == 0
    document = document_of(here / "out")
    assert {tuple(width) for width in document["recipe"]["bits"].values()} == {(8, 16)}
    assert document["targets"]["onnxruntime"]["integer_layers"] == 0
    assert document["targets"]["onnxruntime"]["status"] == "ok"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--scheme", "w4a8", "--max-drop", "1"), "give --scheme mixed"),
        (("--scheme", "mixed", "--max-size", "0.01x"), "nearest possible: --max-size 0.16"),
        (("--scheme", "mixed", "--max-latency", "1us"), "nearest possible: --max-latency"),
        (("--scheme", "mixed", "--max-drop", "1e-6"), "nearest possible: --max-drop"),
    ],
)
def test_impossible_budgets(words: tuple[str, ...], told: str, here: Path, capsys: Capture) -> None:
    assert main([*QUANTIZE, *words, "--out", "out"]) == 2
    assert told in capsys.readouterr().err
    assert not (here / "out").exists()
