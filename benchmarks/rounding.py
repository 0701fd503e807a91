"""Ways to round narrow weights, on the same calibration, the same graph and the same images.

    python -m benchmarks.rounding

Each method is compared with the one before it by a paired bootstrap interval of the KL divergence
from the float network. ``benchmarks/README.md`` says more.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._cases import CASES, DATA_VARIABLE, Case, DataError, find_data
from benchmarks._fidelity import (
    Interval,
    agreement,
    captured_case,
    float_outputs,
    image_tensor,
    logit_kl,
    lowered_outputs,
    paired_interval,
)
from benchmarks._record import Recording
from edgekit.artifacts import quantize_nearest
from edgekit.calibrate import calibrate, samples_of
from edgekit.quantized import QuantizedModel
from edgekit.registry import RUNNERS
from edgekit.rounding import round_weights
from edgekit.types import SCHEMES, Effort, Rounding

_SCHEMA = 1
_USER_ERROR = 2
_METHODS = ("nearest", "squant", "gptq", "learned")
"""From the one that needs least to the one that takes longest."""
_KNOWN = (*_METHODS, "student")
_TARGETS = tuple(RUNNERS)


@dataclass(frozen=True)
class Row:
    """One method with one seed.

    Attributes:
        rounding: what the report says was done.
        seconds: of rounding alone.
        kl: mean divergence by target, nats.
        against_before: difference to the method before with the same seed; negative is better.
        agreement: images with the float network's best class, percent, by target.
    """

    method: str
    scheme: str
    seed: int
    rounding: str
    seconds: float
    kl: Mapping[str, float]
    against_before: Mapping[str, Interval]
    agreement: Mapping[str, float]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 when it is done, 2 when it cannot run."""
    options = _parse(arguments)
    names, methods = options.networks.split(","), options.methods.split(",")
    try:
        unknown = sorted(set(names) - set(CASES)) + sorted(set(methods) - set(_KNOWN))
        unknown += sorted(set(options.targets.split(",")) - set(_TARGETS))
        unknown += sorted({options.scheme} - set(SCHEMES))
        if unknown:
            raise DataError(f"unknown: {', '.join(unknown)}")
        data = find_data(names)
    except DataError as error:
        print(error, file=sys.stderr)
        return _USER_ERROR
    recording = Recording()
    networks = {name: list(_rows(CASES[name], data, options)) for name in names}
    content = {
        "options": {k: str(v) for k, v in vars(options).items() if k != "json"},
        "networks": {name: [asdict(row) for row in rows] for name, rows in networks.items()},
    }
    recording.save(options.json, _SCHEMA, content)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rounding", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--networks", default="cifar10_resnet20,cifar10_resnet8", help=f"of {', '.join(CASES)}")
    add("--methods", default=",".join(_METHODS), help=f"of {', '.join(_KNOWN)}")
    add("--scheme", default="w4a8", help="bit widths (default w4a8)")
    add("--targets", default="onnxruntime,openvino", help=f"of {', '.join(_TARGETS)}, simulated")
    add("--calibration", default="renorm", help="engine or file (default renorm)")
    add("--effort", type=Effort, default=Effort.INSTANT, help="of learning (default instant)")
    add("--seeds", type=int, default=1, help="seeds of calibration and learning (default 1)")
    add("--images", type=int, default=2000, help="evaluation images (default 2000)")
    add("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.epilog = f"The evaluation data is found through {DATA_VARIABLE}."
    return parser.parse_args(arguments)


def _rows(case: Case, data: Path, options: argparse.Namespace) -> Iterator[Row]:
    model = captured_case(case, data)
    images = image_tensor(case, data, options.images)
    wanted = float_outputs(model, images)
    targets = options.targets.split(",")
    for seed in range(options.seeds):
        samples = samples_of(options.calibration)
        statistics = calibrate(model, options.calibration, samples=samples, seed=seed)
        nearest = quantize_nearest(model, statistics, options.scheme)
        before: Mapping[str, np.ndarray] = {}
        for method in options.methods.split(","):
            started = time.perf_counter()
            rounded = round_weights(nearest, Rounding(method), options.effort, seed)
            seconds = time.perf_counter() - started
            measured, before = _measured(rounded, images, wanted, targets, before)
            row = Row(method, options.scheme, seed, seconds=round(seconds, 2), **measured)
            print(_line(case.name, row), flush=True)
            yield row


def _measured(
    rounded: QuantizedModel,
    images: torch.Tensor,
    wanted: np.ndarray,
    targets: Sequence[str],
    before: Mapping[str, np.ndarray],
) -> tuple[dict[str, Any], Mapping[str, np.ndarray]]:
    """Return what was measured of a rounded model, and its divergence for each image."""
    outputs = lowered_outputs(rounded, images, targets=targets)
    found = {name: logit_kl(wanted, value) for name, value in outputs.items()}
    return {
        "rounding": str(rounded.decisions.get("rounding", Rounding.NEAREST.value)),
        "kl": {name: float(value.mean()) for name, value in found.items()},
        "against_before": {
            name: paired_interval(value, before[name])
            for name, value in found.items()
            if name in before
        },
        "agreement": {name: agreement(wanted, value) for name, value in outputs.items()},
    }, found


def _line(network: str, row: Row) -> str:
    parts = [f"{network} {row.scheme} {row.method:8} seed {row.seed} {row.seconds:6.1f} s"]
    for name, divergence in row.kl.items():
        interval = row.against_before.get(name)
        told = (
            "" if interval is None else f" [{1e3 * interval.low:+.1f}, {1e3 * interval.high:+.1f}]"
        )
        parts.append(f"{name} {1e3 * divergence:.1f}e-3{told} {row.agreement[name]:.2f} %")
    return "  ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
