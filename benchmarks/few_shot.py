"""Accuracy of few-shot embeddings on novel classes: the same episodes for every row.

    python -m benchmarks.few_shot --data tiny_imagenet_fewshot.npz \\
        dcap=s0.pt,s1.pt,s2.pt gap=g0.pt,g1.pt,g2.pt --against gap --json results/few_shot.json
    python -m benchmarks.few_shot --data tiny_imagenet_fewshot.npz \\
        float=s0.pt int8=s0-w8a8:onnxruntime --against float

A row is a name with checkpoints, or artifacts as ``DIRECTORY:TARGET``, of one or more seeds; their
accuracies are averaged episode by episode. Intervals are over episodes: they do not hold the spread
over seeds, which stands beside them. The cosine is between an artifact's embeddings and those of
its own float network.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks._fidelity import Interval, paired_interval
from benchmarks._record import Recording
from benchmarks._sources import Source, parse_rows
from edgekit.errors import ConfigError, EdgekitError
from edgekit.few_shot import Metric
from edgekit.training.class_images import ClassImages
from edgekit.training.drawn_shapes import drawn_shapes
from edgekit.training.episodes import EpisodeShape, fixed_episodes
from edgekit.training.few_shot_accuracy import episode_accuracies
from edgekit.training.few_shot_data import open_few_shot_data

_SCHEMA = 1
_USER_ERROR = 2
_DRAWN = "drawn"


@dataclass(frozen=True)
class Row:
    """One name at one number of shots.

    Attributes:
        accuracy: mean over episodes and seeds, percent.
        half_width: of the 95 % interval of that mean over episodes.
        seeds: mean accuracy of each checkpoint or artifact.
        difference: to the row that it is compared with, episode by episode, points.
        cosine: mean cosine of embeddings with the float network's, of artifacts.
        least_cosine: of the picture where it is worst.
    """

    name: str
    shots: int
    accuracy: float
    half_width: float
    seeds: tuple[float, ...]
    difference: Interval | None
    cosine: float | None
    least_cosine: float | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the rows; 0 when it is done, 2 when it cannot run."""
    options = _parse(arguments)
    recording = Recording()
    try:
        rows, described = _measure(options)
    except EdgekitError as error:
        print(f"{error.message}\n{error.hint}", file=sys.stderr)
        return _USER_ERROR
    _print(rows, options, described)
    content = {
        "options": {k: v if not isinstance(v, Path) else str(v) for k, v in vars(options).items()},
        "data": described,
        "rows": [asdict(row) for row in rows],
    }
    recording.save(options.json, _SCHEMA, content)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.few_shot", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("rows", nargs="+", metavar="NAME=SOURCE[,SOURCE]", help="checkpoints or DIRECTORY:TARGET")
    add("--data", required=True, metavar="PATH", help=f"as 'zoo train' takes it, or '{_DRAWN}'")
    add("--against", metavar="NAME", help="the row that the others are compared with")
    add("--part", default="novel", choices=("novel", "validation", "base"))
    add("--episodes", type=int, default=600, help="tasks of each row (default 600)")
    add("--ways", type=int, default=5)
    add("--shots", default="1,5", help="examples of each class, separated by commas")
    add("--queries", type=int, default=15)
    add("--metric", default=Metric.PROJECTION.value, choices=[m.value for m in Metric])
    add("--seed", type=int, default=0, help="of the episodes")
    add("--json", type=Path, metavar="FILE", help="write everything that was measured")
    return parser.parse_args(arguments)


def _measure(options: argparse.Namespace) -> tuple[list[Row], str]:
    named = parse_rows(options.rows)
    if options.against is not None and options.against not in named:
        raise ConfigError(f"--against {options.against}: there is no such row", ", ".join(named))
    sides = {source.side() for sources in named.values() for source in sources}
    if len(sides) > 1:
        raise ConfigError(f"the rows take pictures of different sizes: {sorted(sides)}")
    side = sides.pop()
    data = (
        drawn_shapes(side)
        if options.data == _DRAWN
        else open_few_shot_data(Path(options.data), side)
    )
    images = data.part(options.part)
    found = {name: [source.embed(images) for source in sources] for name, sources in named.items()}
    cosines = {name: _cosine(sources, found[name], images) for name, sources in named.items()}
    rows: list[Row] = []
    for shots in map(int, options.shots.split(",")):
        shape = EpisodeShape(options.ways, shots, options.queries)
        each = _accuracies(found, images.labels, shape, options)
        rows += [_row(name, shots, each, options.against, cosines[name]) for name in named]
    return rows, data.description


def _accuracies(
    found: Mapping[str, Sequence[np.ndarray]],
    labels: np.ndarray,
    shape: EpisodeShape,
    options: argparse.Namespace,
) -> dict[str, np.ndarray]:
    """Return the accuracy of each seed and episode, ``[S, E]`` percent, by row."""
    episodes = list(fixed_episodes(labels, shape, options.episodes, options.seed, options.part))
    metric = Metric(options.metric)
    return {
        name: np.stack([episode_accuracies(each, episodes, metric) for each in embeddings])
        for name, embeddings in found.items()
    }


def _row(
    name: str,
    shots: int,
    each: Mapping[str, np.ndarray],
    against: str | None,
    cosine: tuple[float, float] | None,
) -> Row:
    ours = each[name].mean(0)
    compared = against is not None and against != name
    return Row(
        name,
        shots,
        float(ours.mean()),
        float(1.96 * ours.std(ddof=1) / np.sqrt(len(ours))),
        tuple(float(value) for value in each[name].mean(1)),
        paired_interval(ours, each[str(against)].mean(0)) if compared else None,
        None if cosine is None else cosine[0],
        None if cosine is None else cosine[1],
    )


def _cosine(
    sources: Sequence[Source], embeddings: Sequence[np.ndarray], images: ClassImages
) -> tuple[float, float] | None:
    """Return mean and least cosine with the artifacts' float networks, ``None`` without any."""
    found = []
    for source, value in zip(sources, embeddings, strict=True):
        reference = source.reference()
        if reference is not None:
            wanted = reference.embed(images)
            lengths = np.linalg.norm(wanted, axis=1) * np.linalg.norm(value, axis=1)
            found.append((wanted * value).sum(1) / np.maximum(lengths, 1e-12))
    if not found:
        return None
    joined = np.concatenate(found)
    return float(joined.mean()), float(joined.min())


def _print(rows: Sequence[Row], options: argparse.Namespace, described: str) -> None:
    print(
        f"{options.ways}-way accuracy on {options.part} classes of {described},\n"
        f"{options.episodes} episodes, {options.queries} queries a class, {options.metric}, %"
    )
    width = max(len(row.name) for row in rows)
    for row in rows:
        text = f"{row.shots}-shot  {row.name:<{width}}  {row.accuracy:.2f} +- {row.half_width:.2f}"
        text += "  seeds " + " ".join(f"{value:.2f}" for value in row.seeds)
        if row.difference is not None:
            d = row.difference
            text += f"  against {options.against} {d.mean:+.2f} [{d.low:+.2f}, {d.high:+.2f}]"
        if row.cosine is not None:
            text += f"  cosine {row.cosine:.5f} (least {row.least_cosine:.5f})"
        print(text)


if __name__ == "__main__":
    sys.exit(main())
