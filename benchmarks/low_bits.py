"""What schemes below 8 bits cost and save: executed agreement, layers in INT8, bytes.

    python -m benchmarks.low_bits

Each row is one run of the command ``edgekit quantize``, its artifacts run by their own runtimes on
real images. The control calibrates on real images instead. ``benchmarks/README.md`` says more.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks._cases import CASES, DATA_VARIABLE, Case, DataError, find_data
from benchmarks._measure import JUDGED_CORES, edgekit_command
from benchmarks._process import StepError, run_measured, run_step
from benchmarks._record import Recording

_SCHEMA = 1
_USER_ERROR = 2
_CONTROL = "images"
_FILES = {
    "onnxruntime": ("onnxruntime", "onnxruntime/model.onnx"),
    "openvino": ("openvino", "openvino/model.xml"),
    "tensorrt": ("onnxruntime-simulated", "tensorrt/model.onnx"),
    "simulation": ("onnxruntime-simulated", "simulation/model.onnx"),
}


@dataclass(frozen=True)
class Row:
    """One scheme, effort and calibration of one network; percent, seconds, bytes.

    Attributes:
        agreement: images with the float network's best class, by target.
        drop: float top-1 minus the artifact's, by target.
        convolutions: by target and executed precision; ``None`` where nothing is executed.
        payload: size of the model file in shares of the float file, by target (``.xml`` apart).
    """

    scheme: str
    effort: str
    end_bits: int
    calibration: str
    seed: int
    seconds: float
    peak_bytes: int
    agreement: Mapping[str, float] = field(default_factory=dict)
    drop: Mapping[str, float] = field(default_factory=dict)
    convolutions: Mapping[str, Mapping[str, int] | None] = field(default_factory=dict)
    payload: Mapping[str, float] = field(default_factory=dict)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 when it is done, 2 when it cannot run."""
    options = _parse(arguments)
    names = options.networks.split(",")
    try:
        unknown = sorted(set(names) - set(CASES))
        if unknown:
            raise DataError(f"unknown network {', '.join(unknown)}; known: {', '.join(CASES)}")
        data = find_data(names)
        edgekit_command()
    except (DataError, StepError) as error:
        print(error, file=sys.stderr)
        return _USER_ERROR
    recording = Recording()
    networks = {name: list(_rows(CASES[name], data, options)) for name in names}
    content = {
        "images": options.images,
        "networks": {name: [asdict(row) for row in rows] for name, rows in networks.items()},
    }
    recording.save(options.json, _SCHEMA, content)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.low_bits", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--networks", default="efficientnet_lite0,imagenet_mobilenetv1_075,cifar10_resnet20")
    add("--schemes", default="w4a8", help="separated by commas (default w4a8)")
    add("--efforts", default="instant,standard", help="separated by commas")
    add("--end-bits", type=int, default=8, help="bits of the first and last layers (default 8)")
    add("--seeds", type=int, default=1, help="seeds of each row (default 1)")
    add("--images", type=int, help="evaluation images; default: all")
    add("--control", action="store_true", help="each row on 64 real images as well")
    add("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.epilog = f"Networks: {', '.join(CASES)}. Data is found through {DATA_VARIABLE}."
    return parser.parse_args(arguments)


def _rows(case: Case, data: Path, options: argparse.Namespace) -> Iterator[Row]:
    sources = ("auto", _CONTROL) if options.control else ("auto",)
    with tempfile.TemporaryDirectory(prefix="edgekit-benchmark-") as name:
        folder = Path(name)
        floating = folder / "float.onnx"
        weights = _weights(case, data, folder)
        request = {"case": case.name, "data": str(data)}
        run_step("_reference", {**request, "weights": str(weights), "out": str(floating)})
        wanted = _predict(request, "onnxruntime", floating, options.images, layers=False)
        for scheme in options.schemes.split(","):
            for effort in options.efforts.split(","):
                for source in sources:
                    for seed in range(options.seeds):
                        stated = Row(scheme, effort, options.end_bits, source, seed, 0.0, 0)
                        out = folder / f"{scheme}-{effort}-{source}-{seed}"
                        row = _row(case, request, stated, weights, out, wanted, options.images)
                        print(_line(case.name, row), flush=True)
                        yield row


def _weights(case: Case, data: Path, folder: Path) -> Path:
    if case.weights is not None:
        return data / case.weights
    path = folder / "weights.pt"
    run_measured([edgekit_command(), "zoo", "save", case.arch.removeprefix("zoo:"), str(path)])
    return path


def _predict(
    request: Mapping[str, Any], runtime: str, path: Path, images: int | None, *, layers: bool
) -> dict[str, Any]:
    stated = {"runtime": runtime, "path": str(path), "images": images, "layers": layers}
    return run_step("_accuracy", {**request, **stated})


def _row(
    case: Case,
    request: Mapping[str, Any],
    stated: Row,
    weights: Path,
    out: Path,
    wanted: Mapping[str, Any],
    images: int | None,
) -> Row:
    command = [edgekit_command(), *_quantize(case, request, stated, weights, out)]
    usage = run_measured(command, cores=JUDGED_CORES, allowed=(0, 1))
    plain = {**asdict(stated), "seconds": round(usage.seconds, 1), "peak_bytes": usage.tree_bytes}
    for target, (runtime, file) in _FILES.items():
        path = out / file
        if not path.exists():
            continue
        executed = not runtime.endswith("-simulated")
        found = _predict(request, runtime, path, images, layers=executed)
        plain["agreement"][target] = _equal(found["predicted"], wanted["predicted"])
        top1 = _equal(found["predicted"], wanted["labels"])
        float_top1 = _equal(wanted["predicted"], wanted["labels"])
        plain["drop"][target] = round(float_top1 - top1, 2)
        plain["convolutions"][target] = found["convolutions"]
        payload = path.with_suffix(".bin") if path.suffix == ".xml" else path
        share = payload.stat().st_size / (out / "float/model.onnx").stat().st_size
        plain["payload"][target] = round(share, 4)
    return Row(**plain)


def _quantize(
    case: Case, request: Mapping[str, Any], stated: Row, weights: Path, out: Path
) -> list[str]:
    options = ["--scheme", stated.scheme, "--effort", stated.effort, "--seed", str(stated.seed)]
    options += ["--end-bits", str(stated.end_bits), "--out", str(out), "--json"]
    if case.weights is not None:
        shape = "x".join(map(str, case.shape))
        options += ["--arch", case.arch, "--input", shape, "--preprocessing", case.preprocessing]
    if stated.calibration == _CONTROL:
        folder = Path(request["data"]) / case.images
        if not folder.is_dir():
            folder = out.parent / "images"
            run_step("_images", {**request, "count": 64, "out": str(folder)})
        options += ["--calibration", f"images:{folder}"]
    return ["quantize", str(weights), *options]


def _equal(left: Sequence[int], right: Sequence[int]) -> float:
    return round(100.0 * sum(a == b for a, b in zip(left, right, strict=True)) / len(right), 2)


def _line(network: str, row: Row) -> str:
    parts = [
        f"{network} {row.scheme} {row.effort} {row.calibration} ends {row.end_bits} "
        f"seed {row.seed} {row.seconds:.0f} s {row.peak_bytes / 1e9:.1f} GB"
    ]
    for target, agreement in row.agreement.items():
        counts = row.convolutions[target]
        told = "simulated" if counts is None else ", ".join(f"{v} {k}" for k, v in counts.items())
        parts.append(
            f"{target} {agreement:.1f} % ({row.drop[target]:+.1f} points, {told}, "
            f"{row.payload[target]:.3f}x)"
        )
    return "; ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
