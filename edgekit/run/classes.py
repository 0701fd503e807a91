"""Classes of pictures: by a classifier's output, or by prototypes of a few pictures each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit.datasets import IMAGE_SUFFIXES
from edgekit.errors import ConfigError, LoadError, UnsupportedError
from edgekit.few_shot import Metric, prototypes, scores
from edgekit.run.arrays import read_arrays
from edgekit.run.report import Guess

TOP = 5
SUPPORT_LAYOUT = (
    "--support is a folder with one sub-folder of pictures for each of two classes or more, "
    "as in support/cat/1.jpg, support/cat/2.jpg, support/dog/1.jpg, or a file of --save-support"
)
_SUM_TOLERANCE = 1e-3  # FP16 sums of a thousand probabilities are no closer to one


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the classes' probabilities ``[N, K]`` by softmax, in float64.

    What is one distribution for each row already stays so. A single logit is that of class 1
    against class 0: ``[N, 1]`` gives ``[N, 2]``.
    """
    values = logits.astype(np.float64)
    if values.shape[1] == 1:
        values = np.concatenate((np.zeros_like(values), values), axis=1)
    elif (values >= 0).all() and np.allclose(values.sum(axis=1), 1.0, rtol=0, atol=_SUM_TOLERANCE):
        return values
    shifted = np.exp(values - values.max(axis=1, keepdims=True))
    found: np.ndarray = shifted / shifted.sum(axis=1, keepdims=True)
    return found


def best_classes(output: np.ndarray, names: Sequence[str] | None) -> tuple[Guess, ...]:
    """Return up to five classes of one picture, the most probable first.

    Args:
        output: the network's first output, ``[1, K]``.
        names: of the classes, by index.

    Raises:
        UnsupportedError: the output has another form.
        ConfigError: the number of names is not that of the classes.
    """
    if output.ndim != 2 or len(output) != 1 or not np.isfinite(output).all():
        raise UnsupportedError(
            f"the output is {list(output.shape)}, expected finite numbers [1, classes]",
            "give inputs as .npz files, and read the outputs from what is written",
        )
    chances = probabilities(output)[0]
    raw = output[0] if len(output[0]) == len(chances) else np.array([-output[0, 0], output[0, 0]])
    if names is not None and len(names) != len(chances):
        raise ConfigError(
            f"--classes: {len(names)} names for {len(chances)} classes",
            "the file has one name on each line, in the order of the network's classes",
        )
    order = np.argsort(-chances, kind="stable")[:TOP]
    return tuple(
        Guess(int(i), None if names is None else names[i], float(raw[i]), float(chances[i]))
        for i in order
    )


def read_names(path: Path) -> tuple[str, ...]:
    """Read class names, one a line.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--classes: '{path}' cannot be read: {error}") from error
    return tuple(line.strip() for line in lines if line.strip())


@dataclass(frozen=True, slots=True)
class Support:
    """Prototypes of classes.

    Attributes:
        names: of the classes, in order.
        means: ``[classes, features]``, the mean embedding of each.
        counts: pictures behind each.
        network: hash of the float network whose embeddings these are.
    """

    names: tuple[str, ...]
    means: np.ndarray
    counts: tuple[int, ...]
    network: str

    def guesses(self, embedding: np.ndarray, metric: Metric) -> tuple[Guess, ...]:
        """Return up to five classes for an embedding ``[features]``, the best score first."""
        found = scores(embedding[None], self.means, metric)[0]
        order = np.argsort(-found, kind="stable")[:TOP]
        return tuple(Guess(int(i), self.names[i], float(found[i])) for i in order)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the content of a ``--save-support`` file."""
        about = json.dumps({"schema_version": 1, "network": self.network})
        return {
            "prototypes": self.means.astype(np.float32),
            "names": np.array(self.names),
            "counts": np.array(self.counts, dtype=np.int64),
            "about": np.array(about),
        }


def read_support(path: Path, network: str) -> Support:
    """Read prototypes that a run has saved.

    Raises:
        LoadError: the file cannot be read, or is none of these.
        ConfigError: they belong to another network.
    """
    arrays = read_arrays(path, SUPPORT_LAYOUT)
    try:
        means, names, counts = arrays["prototypes"], arrays["names"], arrays["counts"]
        about: Mapping[str, object] = json.loads(str(arrays["about"]))
        owner = str(about["network"])
    except (KeyError, TypeError, ValueError) as error:
        raise LoadError(f"'{path}' holds no prototypes: {error}", SUPPORT_LAYOUT) from error
    classes = len(names) if names.ndim == 1 else 0
    good = means.ndim == 2 and means.shape[0] == classes >= 2 and counts.shape == (classes,)
    if not good or not np.issubdtype(means.dtype, np.floating) or not np.isfinite(means).all():
        raise LoadError(f"'{path}' holds damaged prototypes", "make them anew from the pictures")
    if owner != network:
        raise ConfigError(
            f"'{path}' holds prototypes of another network",
            "make them anew with this one: --support FOLDER --save-support FILE.npz",
        )
    texts = tuple(str(name) for name in names)
    return Support(texts, means, tuple(int(count) for count in counts), network)


def support_files(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Return the pictures of each class, both sorted by name.

    Raises:
        ConfigError: the folder is laid out otherwise.
    """
    if not folder.is_dir():
        raise ConfigError(f"--support: '{folder}' is not a folder", SUPPORT_LAYOUT)
    inside = sorted(item for item in folder.iterdir() if not item.name.startswith("."))
    loose = [item.name for item in inside if item.suffix.lower() in IMAGE_SUFFIXES]
    classes = {item.name: _pictures(item) for item in inside if item.is_dir()}
    if loose:
        raise ConfigError(
            f"--support: '{folder}' holds pictures that are in no class, such as '{loose[0]}'",
            SUPPORT_LAYOUT,
        )
    if len(classes) < 2:
        found = "one class only" if classes else "no sub-folder"
        raise ConfigError(f"--support: '{folder}' holds {found}", SUPPORT_LAYOUT)
    empty = [name for name, pictures in classes.items() if not pictures]
    if empty:
        raise ConfigError(
            f"--support: no picture for class '{empty[0]}' in '{folder / empty[0]}'",
            f"every class needs one picture at least; {SUPPORT_LAYOUT}",
        )
    return classes


def _pictures(folder: Path) -> tuple[Path, ...]:
    return tuple(
        sorted(
            item
            for item in folder.iterdir()
            if item.suffix.lower() in IMAGE_SUFFIXES and not item.name.startswith(".")
        )
    )


def make_support(
    classes: Mapping[str, Sequence[Path]], embed: Callable[[Path], np.ndarray], network: str
) -> Support:
    """Embed the pictures of each class and take their mean.

    Args:
        classes: pictures of each class.
        embed: returns the embedding ``[features]`` of a picture.
        network: hash of the float network.
    """
    means = [
        prototypes(np.stack([embed(path) for path in paths])[None])[0] for paths in classes.values()
    ]
    counts = tuple(len(paths) for paths in classes.values())
    return Support(tuple(classes), np.stack(means), counts, network)
