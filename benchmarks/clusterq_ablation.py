"""What each loss of ClusterQ brings, at equal steps, against its own base GDFQ.

    python -m benchmarks.clusterq_ablation

The figure is the KL divergence between the class distributions of the float network and of its
simulated W8A8 form, averaged over three targets, image by image. Each row's interval is against
GDFQ with the same seeds on the same images. It resamples images only, so a difference counts when
it also exceeds the spread over seeds, which stands beside it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

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
    paired_interval,
    simulated_outputs,
)
from benchmarks._record import Recording
from edgekit.calibrate import observe_made
from edgekit.calibration.clusterq import GDFQ, ClusterQ, Losses, Making, Scale, Schedule, Variation
from edgekit.calibration.renorm import Renorm
from edgekit.capture import CapturedModel

_SCHEMA = 1
_USER_ERROR = 2
_EPOCHS = 10
_BASE = "GDFQ"
_REFERENCE = "renorm"


@dataclass(frozen=True)
class Row:
    """One configuration: its KL by seed, and its interval against the base.

    Attributes:
        seeds: mean KL over images and targets for each seed, nats.
        by_target: mean KL over images and seeds for each target.
        agreement: top-1 agreement with the float network, percent.
        against_base: difference to the base with the same seeds; negative is better.
        held_out: mean held-out losses of the selected generators.
        seconds: mean time of one calibration.
    """

    name: str
    seeds: tuple[float, ...]
    by_target: Mapping[str, float]
    agreement: float
    against_base: Interval | None
    held_out: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class Run:
    """One calibration, measured: KL ``[targets, N]``."""

    divergence: Mapping[str, np.ndarray]
    agreement: float
    held_out: Mapping[str, float]
    seconds: float

    @property
    def each(self) -> np.ndarray:
        """KL of each image, averaged over targets."""
        return np.stack(list(self.divergence.values())).mean(0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ablation; 0 when it is done, 2 when it cannot run."""
    options = _parse(arguments)
    names = options.networks.split(",")
    try:
        unknown = sorted(set(names) - set(CASES))
        if unknown:
            raise DataError(f"unknown network {', '.join(unknown)}; known: {', '.join(CASES)}")
        data = find_data(names)
    except DataError as error:
        print(error, file=sys.stderr)
        return _USER_ERROR
    recording = Recording()
    rows = {name: _ablate(CASES[name], data, options) for name in names}
    for name in names:
        _print(name, rows[name], options)
    content = {
        "options": {k: v for k, v in vars(options).items() if k != "json"},
        "networks": {name: [asdict(row) for row in rows[name]] for name in names},
    }
    recording.save(options.json, _SCHEMA, content)
    return 0


def configurations(base: Losses) -> Mapping[str, Losses]:
    """Return the losses of each row, from those of the full method."""
    return {
        _BASE: replace(base, sfda=GDFQ.sfda, icv=GDFQ.icv),
        "+SFDA": replace(base, icv=0.0, beta=0.0),
        "+SFDA+ICV": replace(base, beta=0.0),
        "+SFDA+EMA": replace(base, icv=0.0),
        "full": base,
    }


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    default = Losses()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.clusterq_ablation", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--networks", default="cifar10_resnet20", help=f"of {', '.join(CASES)}")
    add("--seeds", type=int, default=3, help="seeds of each row (default 3)")
    add("--steps", type=int, default=1000, help=f"steps of each run, in {_EPOCHS} epochs")
    add("--batch", type=int, default=Schedule().batch, help="images in a step")
    add("--classes", type=int, default=Schedule().classes, help="classes in a step, at most")
    add("--width", type=int, default=Making().width, help="width of the generator")
    add("--samples", type=int, default=64, help="calibration images (default 64)")
    add("--images", type=int, default=500, help="evaluation images (default 500)")
    add("--bns", type=float, default=default.bns, help="weight of L_BNS in every row")
    add("--sfda", type=float, default=default.sfda, help="weight of L_SFDA")
    add("--icv", type=float, default=default.icv, help="weight of L_ICV")
    add("--scale", choices=[s.value for s in Scale], default=default.scale.value)
    add("--variation", choices=[v.value for v in Variation], default=default.variation.value)
    add("--rows", help="names of the rows, separated by commas; default: all")
    add("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.epilog = f"The evaluation data is found through {DATA_VARIABLE}."
    return parser.parse_args(arguments)


def _ablate(case: Case, data: Path, options: argparse.Namespace) -> list[Row]:
    model, images = captured_case(case, data), image_tensor(case, data, options.images)
    reference = float_outputs(model, images)
    base = replace(
        Losses(),
        bns=options.bns,
        sfda=options.sfda,
        icv=options.icv,
        scale=Scale(options.scale),
        variation=Variation(options.variation),
    )
    steps = max(options.steps // _EPOCHS, 1)
    engine = ClusterQ(
        samples=options.samples,
        # equal steps for every row: no early stop
        schedule=Schedule(
            epochs=_EPOCHS,
            steps=steps,
            warmup=_EPOCHS // 10,
            batch=options.batch,
            classes=options.classes,
            patience=_EPOCHS,
        ),
        making=Making(width=options.width),
    )
    known = configurations(base)
    wanted = list(known) if options.rows is None else [_BASE, *options.rows.split(",")]
    sources: dict[str, list[ClusterQ] | list[Renorm]] = {
        _REFERENCE: [Renorm(samples=options.samples, seed=s) for s in range(options.seeds)]
    }
    for name in dict.fromkeys(wanted):
        sources[name] = [
            replace(engine, seed=seed, losses=known[name]) for seed in range(options.seeds)
        ]
    runs: dict[str, list[Run]] = {}
    for name, engines in sources.items():
        runs[name] = [_measure(source, model, images, reference) for source in engines]
        done = ", ".join(f"{run.each.mean():.3e}" for run in runs[name])
        print(f"{case.name} {name}: {done}", file=sys.stderr, flush=True)
    return [_row(name, found, runs[_BASE]) for name, found in runs.items()]


def _measure(
    source: ClusterQ | Renorm, model: CapturedModel, images: torch.Tensor, reference: np.ndarray
) -> Run:
    started = time.perf_counter()
    held_out: list[Mapping[str, float]] = []
    if isinstance(source, ClusterQ):
        made = source.synthesize(model)
        held_out.append(made.facts["selected"])
        statistics = observe_made(model, made, source.seed)
    else:
        statistics = source.observe(model)
    seconds = time.perf_counter() - started
    outputs = simulated_outputs(model, statistics, images)
    return Run(
        {target: logit_kl(reference, value) for target, value in outputs.items()},
        float(np.mean([agreement(reference, value) for value in outputs.values()])),
        held_out[0] if held_out else {},
        seconds,
    )


def _row(name: str, runs: Sequence[Run], base: Sequence[Run]) -> Row:
    ours, theirs = (np.mean([run.each for run in group], axis=0) for group in (runs, base))
    return Row(
        name,
        tuple(float(run.each.mean()) for run in runs),
        {
            target: float(np.mean([run.divergence[target].mean() for run in runs]))
            for target in runs[0].divergence
        },
        float(np.mean([run.agreement for run in runs])),
        None if name == _BASE else paired_interval(ours, theirs),
        {key: float(np.mean([run.held_out[key] for run in runs])) for key in runs[0].held_out},
        float(np.mean([run.seconds for run in runs])),
    )


def _print(network: str, rows: Sequence[Row], options: argparse.Namespace) -> None:
    print(
        f"\n{network}: KL to the float network at W8A8, in thousandths of a nat, mean of "
        f"{options.seeds} seeds\n({options.images} images, {options.steps} steps of "
        f"{options.batch}, {options.samples} calibration images)"
    )
    targets = list(rows[0].by_target)
    lines = [["row", "KL", "seeds", *targets, f"against {_BASE}", "agreement", "BNS", "acc", "s"]]
    for row in rows:
        fixed = [f"{1e3 * row.by_target[target]:.3f}" for target in targets]
        held_out = [
            f"{row.held_out[key]:.3g}" if key in row.held_out else ""
            for key in ("held_out_bns", "held_out_accuracy")
        ]
        mean = f"{1e3 * np.mean(row.seeds):.3f}"
        spread = f"{1e3 * min(row.seeds):.2f}..{1e3 * max(row.seeds):.2f}"
        versus, agreed = _difference(row.against_base), f"{row.agreement:.2f}"
        lines.append(
            [row.name, mean, spread, *fixed, versus, agreed, *held_out, f"{row.seconds:.0f}"]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)))


def _difference(versus: Interval | None) -> str:
    if versus is None:
        return ""
    mean, low, high = (1e3 * value for value in (versus.mean, versus.low, versus.high))
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


if __name__ == "__main__":
    sys.exit(main())
