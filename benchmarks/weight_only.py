"""Weight-only artifacts for OpenVINO beside NNCF's weight compression: fidelity and bytes.

    python -m benchmarks.weight_only

Both start from the same float network, and OpenVINO executes what they write on the same images.
Our own artifact with the same widths is what the interval compares with. ``benchmarks/README.md``
says more.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._cases import CASES, DATA_VARIABLE, DataError, find_data
from benchmarks._compression import ENGINES, Engine, compress, stored_types
from benchmarks._fed_peers import synthesized, weights_file
from benchmarks._fidelity import (
    Interval,
    agreement,
    float_outputs,
    image_tensor,
    loaded_case,
    logit_kl,
    paired_interval,
)
from benchmarks._process import StepError
from benchmarks._record import Recording
from benchmarks._reference import write_float
from benchmarks._runtimes import open_inference
from benchmarks._trained import needed_file, trained_transformer
from edgekit.artifacts import export, quantize_observed
from edgekit.calibrate import calibrate
from edgekit.capture import CapturedModel, capture
from edgekit.quant.statistics import Statistics
from edgekit.synthetic import load_synthetic
from edgekit.types import InputSpec, Preprocessing, Task

_SCHEMA = 1
_USER_ERROR = 2
_TRANSFORMER = "cifar10_transformer"
_LITE0 = "efficientnet_lite0"
_SAMPLES = 128


@dataclass(frozen=True)
class Network:
    """A network with what its weights are measured on."""

    name: str
    module: torch.nn.Module
    model: CapturedModel
    images: torch.Tensor
    statistics: Statistics
    made: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of its input at batch 1."""
        return self.model.inputs[0].shape


@dataclass(frozen=True)
class Row:
    """One engine on one network.

    Attributes:
        kl: mean divergence from the float network, nats.
        against_ours: difference to edgekit's artifact of the same widths; negative is better.
        agreement: images with the float network's best class, percent.
        bytes: of the ``.bin`` file.
        share: of the float network's ``.bin`` file.
        stored: share of the weights by the type that the file holds them in.
        seconds: of quantization and export.
    """

    engine: str
    widths: str
    kl: float
    against_ours: Interval | None
    agreement: float
    bytes: int
    share: float
    stored: Mapping[str, float]
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 when it is done, 2 when it cannot run."""
    options = _parse(arguments)
    names = options.networks.split(",")
    try:
        unknown = sorted(set(names) - set(_NETWORKS))
        if unknown:
            raise DataError(f"unknown network {', '.join(unknown)}; known: {', '.join(_NETWORKS)}")
        data = find_data([name for name in names if name in CASES])
        if _TRANSFORMER in names and not (data / needed_file()).exists():
            raise DataError(f"'{data}' lacks {needed_file()}")
        recording = Recording()
        networks = {name: _measured(_NETWORKS[name](data, options)) for name in names}
    except (DataError, StepError) as error:
        print(error, file=sys.stderr)
        return _USER_ERROR
    content = {
        "made": None if options.made is None else options.made.name,
        "networks": networks,
    }
    recording.save(options.json, _SCHEMA, content)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.weight_only", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--networks", default=",".join(_NETWORKS), help=f"of {', '.join(_NETWORKS)}")
    add("--images", type=int, default=500, help="evaluation images (default 500)")
    add("--made", type=Path, metavar="FILE", help=f"our set for {_LITE0}, instead of making one")
    add("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.epilog = f"The evaluation data is found through {DATA_VARIABLE}."
    return parser.parse_args(arguments)


def _lite0(data: Path, options: argparse.Namespace) -> Network:
    case = CASES[_LITE0]
    loaded = loaded_case(case, data)
    model = loaded.capture()
    with tempfile.TemporaryDirectory(prefix="edgekit-benchmark-") as scratch:
        folder, file = Path(scratch), options.made
        if file is None:
            file, _ = synthesized(case, weights_file(case, data, folder), folder)
        made = load_synthetic(file, model.inputs).inputs[0]
    images = image_tensor(case, data, options.images)
    statistics = calibrate(model, "renorm", samples=64, seed=0)
    return Network(case.name, loaded.module, model, images, statistics, made)


def _transformer(data: Path, options: argparse.Namespace) -> Network:
    module = trained_transformer(data)
    preprocessing = Preprocessing((0.5,), (0.5,))
    spec = InputSpec("image", (1, 3, 32, 32))
    model = capture(
        module, [spec], task=Task.CLASSIFICATION, preprocessing=preprocessing, num_classes=10
    )
    images = image_tensor(CASES["cifar10_resnet20"], data, options.images)
    case = CASES["cifar10_resnet20"]  # its normalization is undone
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (case.mean, case.std))
    images = (images * std + mean) * 2 - 1
    statistics = calibrate(model, "renorm", samples=_SAMPLES, seed=0)
    assert statistics.inputs is not None
    return Network(_TRANSFORMER, module, model, images, statistics, statistics.inputs.inputs[0])


_NETWORKS: Mapping[str, Callable[[Path, argparse.Namespace], Network]] = {
    _LITE0: _lite0,
    _TRANSFORMER: _transformer,
}


def _measured(network: Network) -> dict[str, Any]:
    rows: list[Row] = []
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="edgekit-benchmark-") as scratch:
        folder = Path(scratch)
        floating = _float_file(network, folder)
        wanted = float_outputs(network.model, network.images)
        print(f"{network.name}: float {_bin(floating).stat().st_size} bytes", flush=True)
        ours: dict[str, np.ndarray] = {}
        for row in _rows(network, folder, floating, wanted, ours, failures):
            print(_line(network.name, row), flush=True)
            rows.append(row)
        size = _bin(floating).stat().st_size
    for name, failure in failures.items():
        print(f"{network.name} {name} failed: {failure}", flush=True)
    return {
        "images": len(network.images),
        "float_bytes": size,
        "our_set": len(network.made),
        "rows": [asdict(row) for row in rows],
        "failures": failures,
    }


def _rows(
    network: Network,
    folder: Path,
    floating: Path,
    wanted: np.ndarray,
    ours: dict[str, np.ndarray],
    failures: dict[str, str],
) -> Iterator[Row]:
    for index, engine in enumerate(ENGINES):
        started = time.perf_counter()
        try:
            path = _written(engine, network, floating, folder / str(index))
        except StepError as error:
            failures[f"{engine.name} ({engine.widths})"] = str(error)
            continue
        seconds = round(time.perf_counter() - started, 1)
        outputs = _executed(path, network.images)
        found = logit_kl(wanted, outputs)
        reference = ours.setdefault(engine.widths, found)
        payload = _bin(path).stat().st_size
        yield Row(
            engine=engine.name,
            widths=engine.widths,
            kl=float(found.mean()),
            against_ours=None if reference is found else paired_interval(found, reference),
            agreement=agreement(wanted, outputs),
            bytes=payload,
            share=round(payload / _bin(floating).stat().st_size, 4),
            stored=stored_types(path),
            seconds=seconds,
        )


def _written(engine: Engine, network: Network, floating: Path, folder: Path) -> Path:
    """Write one engine's artifact and return the path of its ``.xml``."""
    folder.mkdir()
    if engine.ours is None:
        path = folder / "model.xml"
        compress(engine, floating.with_suffix(".onnx"), network.made, path)
        return path
    quantized = quantize_observed(network.model, network.statistics, **engine.ours)
    export(quantized, folder, targets=("openvino",))
    return folder / "openvino/model.xml"


def _float_file(network: Network, folder: Path) -> Path:
    """Write the float network as ONNX, and as OpenVINO's own form beside it."""
    import openvino  # type: ignore[import-untyped]

    path = folder / "float.onnx"
    write_float(network.module, network.shape, path)
    openvino.save_model(
        openvino.convert_model(str(path)), str(path.with_suffix(".xml")), compress_to_fp16=False
    )
    return path.with_suffix(".xml")


def _bin(path: Path) -> Path:
    return path.with_suffix(".bin")


def _executed(path: Path, images: torch.Tensor) -> np.ndarray:
    infer = open_inference("openvino", str(path))
    return np.concatenate([infer(images[k : k + 1].numpy()) for k in range(len(images))])


def _line(network: str, row: Row) -> str:
    interval = row.against_ours
    told = "" if interval is None else f" [{1e3 * interval.low:+.3f}, {1e3 * interval.high:+.3f}]"
    stored = ", ".join(f"{100 * share:.0f} % {name}" for name, share in row.stored.items())
    return (
        f"{network} {row.widths:12} {row.engine:40} {1e3 * row.kl:.3f}e-3{told} "
        f"{row.agreement:.1f} % {row.bytes} bytes ({row.share:.3f}x: {stored}) {row.seconds:.1f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
