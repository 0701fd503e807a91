"""What several tests need to know about the repository itself."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # some tests run where torch cannot be imported
    from torch import nn

    from edgekit.quantized import QuantizedModel
    from edgekit.types import InputSpec, LayerBits

ROOT = Path(__file__).resolve().parent.parent
# Import package -> its folder, relative to the repository; folders below belong to it.
PACKAGE_FOLDERS = {
    "edgekit": "edgekit",
    "edgekit.exporters": "exporters",
    "edgekit.calibration": "calibration",
}


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def module_files() -> dict[str, Path]:
    """Every module of the project on disk: dotted import name -> file."""
    found: dict[str, Path] = {}
    for package, folder in PACKAGE_FOLDERS.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            inner = file.relative_to(ROOT / folder).with_suffix("").parts
            parts = inner[:-1] if inner[-1] == "__init__" else inner
            found[".".join((package, *parts))] = file
    return found


@pytest.fixture(scope="session")
def device_part(root: Path, module_files: dict[str, Path]) -> set[str]:
    """The modules of which docs/design.md promises that they run without torch."""
    design = (root / "docs" / "design.md").read_text(encoding="utf-8")
    sentence = re.search(r"imports no torch: ((?:`[^`]+`[,\s]*)+)\.", design)
    assert sentence, "docs/design.md no longer lists the part that imports no torch"
    patterns = [f"edgekit.{text}" for text in re.findall(r"`([^`]+)`", sentence.group(1))]
    return {
        name
        for name in module_files
        for pattern in patterns
        if fnmatch(name, pattern) or name == pattern.removesuffix(".*")
    }


TINY_NETWORK = """
from torch import nn

def build(width=8, classes=4):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, classes))
"""


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tiny.pt`, the weights that `tiny:build` of `tiny.py` takes at 1x3x32x32."""
    torch = pytest.importorskip("torch", reason="the host part needs the extra 'torch'")
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.py").write_text(TINY_NETWORK, encoding="utf-8")
    names: dict[str, Any] = {}
    exec(TINY_NETWORK, names)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = names["build"]()
        for _ in range(20):  # statistics of BatchNorm that belong to some input
            network(torch.randn(16, 3, 32, 32))
        torch.save(network.state_dict(), folder / "tiny.pt")
    return folder


@pytest.fixture
def tiny(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory of the test's own that holds nothing but `tiny.py` and `tiny.pt`."""
    shutil.copytree(tiny_folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "tiny", raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def quantize_module() -> Callable[..., QuantizedModel]:
    """Take a module through capture, calibration, folding and quantization, without equalization.

    Arguments: the module and its input specifications, or the shapes of its float inputs without
    the batch; ``samples`` for the calibration; scheme and widths of single layers by name.
    """

    def build(
        module: nn.Module,
        *inputs: InputSpec | tuple[int, ...],
        samples: int = 32,
        scheme: str = "w8a8",
        bits: Mapping[str, LayerBits] | None = None,
    ) -> QuantizedModel:
        from edgekit.allocation import allocate
        from edgekit.calibration.renorm import Renorm
        from edgekit.capture import capture
        from edgekit.passes.fold_batchnorm import fold_batchnorm
        from edgekit.quantized import quantize_model
        from edgekit.sites import insert_sites
        from edgekit.types import SCHEMES, InputSpec

        specs = [
            spec if isinstance(spec, InputSpec) else InputSpec(f"x{index}", (1, *spec))
            for index, spec in enumerate(inputs)
        ]
        captured = capture(module, specs)
        statistics = Renorm(samples=samples, batch=16).observe(captured)
        folded, statistics = fold_batchnorm(captured, statistics)
        widths = allocate(folded.graph.graph, SCHEMES[scheme], chosen=bits)
        return quantize_model(insert_sites(folded), statistics, SCHEMES[scheme], widths, {})

    return build


@pytest.fixture(scope="session")
def write_jetson_result() -> Callable[..., Path]:
    """Write a result of a small classifier in TensorRT's form, which ONNX Runtime opens, too."""
    onnx = pytest.importorskip("onnx", reason="the test networks are built with onnx")

    def write(folder: Path, targets: tuple[str, ...] = ("tensorrt", "onnxruntime")) -> Path:
        from edgekit import manifest as m
        from edgekit.types import Cpu, InputSpec, OutputSpec, Preprocessing, Task

        model = _small_classifier(onnx)
        for name in ("float", *targets):
            (folder / name).mkdir(parents=True)
            onnx.save(model, folder / name / "model.onnx")
        entries = []
        for name in targets:
            file = m.FileEntry.of(folder, f"{name}/model.onnx")
            entries.append(m.TargetEntry(name, file.path, (file,), executed=False, reason="test"))
        m.write_manifest(
            m.Manifest(
                edgekit_version="0",
                task=Task.CLASSIFICATION,
                inputs=(InputSpec("x", (1, 3, 16, 16)),),
                outputs=(OutputSpec("file", (1, 4)),),
                preprocessing=Preprocessing((0.5,), (0.5,)),
                num_classes=4,
                scheme="w8a8",
                cpu=Cpu.AVX2,
                targets=tuple(entries),
                files=(m.FileEntry.of(folder, "float/model.onnx"),),
            ),
            folder,
        )
        return folder

    return write


def _small_classifier(onnx: Any) -> Any:
    """One quantized convolution, pooling and a float product; its output is called ``file``.

    That is also the name of an argument of ``numpy.savez``.
    """
    import numpy as np

    node, rng = onnx.helper.make_node, np.random.default_rng(0)
    info, batch = onnx.helper.make_tensor_value_info, "batch"
    codes = rng.integers(-63, 64, (8, 3, 3, 3)).astype(np.int8)
    constants = {
        "codes": codes,
        "weight_scale": np.float32(2**-7),
        "scale": np.float32(2**-6),
        "zero": np.int8(0),
        "matrix": rng.normal(0, 1, (8, 4)).astype(np.float32),
    }
    nodes = [
        node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "Q"),
        node("DequantizeLinear", ["q", "scale", "zero"], ["dq"], "DQ"),
        node("DequantizeLinear", ["codes", "weight_scale"], ["w"], "W"),
        node("Conv", ["dq", "w"], ["hidden"], "first", pads=[1] * 4),
        node("Relu", ["hidden"], ["positive"], "relu"),
        node("GlobalAveragePool", ["positive"], ["pooled"], "pool"),
        node("Flatten", ["pooled"], ["flat"], "flatten"),
        node("MatMul", ["flat", "matrix"], ["file"], "last"),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "network",
        [info("x", onnx.TensorProto.FLOAT, [batch, 3, 16, 16])],
        [info("file", onnx.TensorProto.FLOAT, [batch, 4])],
        [onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
    )
    opset = [onnx.helper.make_opsetid("", 19)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)
