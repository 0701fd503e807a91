"""Every calibration against renorm, on the same images and the same quantized graph.

    python -m benchmarks.accuracy

The figure that ranks is the KL divergence between the class distributions of the float network and
of its quantized form, image by image, with a paired bootstrap interval against renorm: a
difference of a few images in agreement is noise. ``benchmarks/README.md`` says more.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._cases import CASES, DATA_VARIABLE, Case, DataError, find_data
from benchmarks._fed_peers import PEER_ENGINES, PeerResult, fed_peers
from benchmarks._fidelity import (
    Interval,
    agreement,
    captured_case,
    float_outputs,
    image_tensor,
    logit_kl,
    paired_interval,
    simulated_outputs,
)
from benchmarks._process import StepError
from benchmarks._record import Recording
from edgekit.calibrate import calibrate, samples_of
from edgekit.capture import CapturedModel
from edgekit.observe import observe_set
from edgekit.quant.statistics import Statistics
from edgekit.synthetic import SyntheticSet

_SCHEMA = 2
_USER_ERROR = 2
_REFERENCE = "renorm"
_CONTROL = "real images"
_ENGINES = ("renorm", "distill", "clusterq", "noise", _CONTROL)
_PATHS = ("json", "plot")
_PEER_SCHEME = "w8a8"
_STOCHASTIC = ("distill", "clusterq", "renorm")


@dataclass(frozen=True)
class Row:
    """One calibration of one network with one seed.

    Attributes:
        kl: mean divergence by target, nats.
        against_renorm: difference to renorm with the same seed; negative is better.
        agreement: images with the same best class as the float network, percent, by target.
        seconds: time of the calibration alone; of peers, of all their work and of making our set.
        executed: whether the target's runtime ran it, as for peers; else it is simulated, which
            equals what runs.
    """

    engine: str
    scheme: str
    seed: int
    seconds: float
    kl: Mapping[str, float]
    against_renorm: Mapping[str, Interval]
    agreement: Mapping[str, float]
    notes: tuple[str, ...]
    executed: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 when it is done, 2 when it cannot run."""
    options = _parse(arguments)
    names = options.networks.split(",")
    try:
        unknown = sorted(set(names) - set(CASES))
        unknown += sorted(set(options.engines.split(",")) - {*_ENGINES, *PEER_ENGINES})
        if unknown:
            raise DataError(f"unknown: {', '.join(unknown)}")
        if options.plot is not None and importlib.util.find_spec("matplotlib") is None:
            raise DataError("--plot needs matplotlib: pip install 'edgekit-quant[plots]'")
        data = find_data(names)
    except DataError as error:
        print(error, file=sys.stderr)
        return _USER_ERROR
    recording = Recording()
    try:
        networks = {name: _network(CASES[name], data, options) for name in names}
    except StepError as error:
        print(error, file=sys.stderr)
        return _USER_ERROR
    content = {
        "options": {
            k: v.name if isinstance(v, Path) else str(v)  # folders of this machine are no result
            for k, v in vars(options).items()
            if k not in _PATHS
        },
        "networks": networks,
    }
    recording.save(options.json, _SCHEMA, content)
    if options.plot is not None:
        _plot(networks, options.plot)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--networks", default="cifar10_resnet20,cifar10_resnet8", help=f"of {', '.join(CASES)}")
    known = ", ".join((*_ENGINES, *PEER_ENGINES))
    add("--engines", default=",".join(_ENGINES), help=f"of {known}")
    add("--schemes", default="w8a8", help="quantization schemes, separated by commas")
    add("--seeds", type=int, default=3, help="seeds of stochastic engines (default 3)")
    add("--images", type=int, default=2000, help="evaluation images (default 2000)")
    add("--peers", action="store_true", help="all peers beside the other engines")
    add("--made", type=Path, metavar="FILE", help="our set for peers, instead of making one")
    add("--json", type=Path, metavar="FILE", help="write everything that was measured")
    add("--plot", type=Path, metavar="FILE", help="picture of fidelity against seconds")
    parser.epilog = f"The evaluation data is found through {DATA_VARIABLE}."
    return parser.parse_args(arguments)


def _network(case: Case, data: Path, options: argparse.Namespace) -> dict[str, Any]:
    model = captured_case(case, data)
    images = image_tensor(case, data, options.images)
    wanted = float_outputs(model, images)
    rows: list[Row] = []
    named = options.engines.split(",")
    peers = [name for name in PEER_ENGINES if options.peers or name in named]
    engines = sorted(set(named) - set(PEER_ENGINES), key=_order)
    failures: dict[str, str] = {}
    for scheme in options.schemes.split(","):
        base: dict[int, Mapping[str, np.ndarray]] = {}
        for engine in engines:
            for seed in range(options.seeds if engine in _STOCHASTIC else 1):
                row, found = _measure(model, images, wanted, engine, scheme, seed, base)
                if engine == _REFERENCE:
                    base[seed] = found
                rows.append(row)
                print(_line(case.name, row), flush=True)
        if scheme != _PEER_SCHEME or not peers:
            continue
        for result in fed_peers(case, data, options.images, peers, options.made):
            if result.outputs is None:
                failures[result.engine] = result.failure
                print(f"{case.name} {result.engine} failed: {result.failure}", flush=True)
                continue
            rows.append(_peer_row(result, result.outputs, wanted, base.get(0, {})))
            print(_line(case.name, rows[-1]), flush=True)
    return {"images": len(images), "rows": [asdict(row) for row in rows], "failures": failures}


def _order(engine: str) -> int:
    """Renorm first, which the others are compared with."""
    return -1 if engine == _REFERENCE else _ENGINES.index(engine)


def _peer_row(
    result: PeerResult,
    outputs: np.ndarray,
    wanted: np.ndarray,
    reference: Mapping[str, np.ndarray],
) -> Row:
    target, found = result.target, logit_kl(wanted, outputs)
    against = reference.get(target)
    return Row(
        engine=result.engine,
        scheme=_PEER_SCHEME,
        seed=0,
        seconds=result.seconds,
        kl={target: float(found.mean())},
        against_renorm={} if against is None else {target: paired_interval(found, against)},
        agreement={target: agreement(wanted, outputs)},
        notes=(),
        executed=True,
    )


def _measure(
    model: CapturedModel,
    images: torch.Tensor,
    wanted: np.ndarray,
    engine: str,
    scheme: str,
    seed: int,
    base: Mapping[int, Mapping[str, np.ndarray]],
) -> tuple[Row, Mapping[str, np.ndarray]]:
    started = time.perf_counter()
    statistics = _statistics(model, images, engine, seed)
    seconds = time.perf_counter() - started
    outputs = simulated_outputs(model, statistics, images, scheme=scheme)
    found = {name: logit_kl(wanted, value) for name, value in outputs.items()}
    reference = base.get(seed, {})
    return Row(
        engine=engine,
        scheme=scheme,
        seed=seed,
        seconds=round(seconds, 1),
        kl={name: float(value.mean()) for name, value in found.items()},
        against_renorm={
            name: paired_interval(value, reference[name])
            for name, value in found.items()
            if name in reference
        },
        agreement={name: agreement(wanted, value) for name, value in outputs.items()},
        notes=statistics.notes,
    ), found


def _statistics(model: CapturedModel, images: torch.Tensor, engine: str, seed: int) -> Statistics:
    if engine != _CONTROL:
        return calibrate(model, engine, samples=samples_of(engine), seed=seed)
    # from the evaluation images themselves, which favours the control: no others are at hand
    count = samples_of("images")
    picked = images[:: max(len(images) // count, 1)][:count]
    return observe_set(model, SyntheticSet((picked,), None, "images"), 32, seed=seed)


def _line(network: str, row: Row) -> str:
    parts = [f"{network} {row.scheme} {row.engine:12} seed {row.seed} {row.seconds:7.1f} s"]
    for name, divergence in row.kl.items():
        interval = row.against_renorm.get(name)
        told = (
            "" if interval is None else f" [{1e3 * interval.low:+.2f}, {1e3 * interval.high:+.2f}]"
        )
        parts.append(f"{name} {1e3 * divergence:.2f}e-3{told} {row.agreement[name]:.1f} %")
    return "  ".join(parts)


def _plot(networks: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw mean KL over targets against calibration time, one panel for each network."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, len(networks), figsize=(5 * len(networks), 4), squeeze=False, layout="constrained"
    )
    names = (*_ENGINES, *PEER_ENGINES)
    marker: Callable[[str], str] = dict(zip(names, "osD^*PXpx", strict=True)).__getitem__
    for axis, (name, network) in zip(axes[0], networks.items(), strict=True):
        for engine in dict.fromkeys(row["engine"] for row in network["rows"]):
            rows = [row for row in network["rows"] if row["engine"] == engine]
            seconds = [max(row["seconds"], 0.1) for row in rows]
            fidelity = [1e3 * float(np.mean(list(row["kl"].values()))) for row in rows]
            axis.plot(seconds, fidelity, marker(engine), label=engine)
        axis.set(xscale="log", yscale="log", title=name)
        axis.set(xlabel="calibration, s", ylabel="logit KL, 1e-3 nats")
        axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    sys.exit(main())
