"""The networks that are measured, and where their data lies."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA_VARIABLE = "EDGEKIT_DATA"


class DataError(Exception):
    """The evaluation data is not there."""


@dataclass(frozen=True, slots=True)
class Case:
    """One network with its evaluation set.

    Attributes:
        arch: value of ``--arch``.
        weights: file below the data folder; ``None``: the zoo's own weights.
        images: folder or ``.npz`` below the data folder.
        size: height and width of the input.
        mean: subtracted after division by 255, one value or one for each channel.
        std: divisor after that.
        crop: whether a central crop of ``size`` is taken (the photographs are larger).
        convolutions: number of convolutions.
        published_top1: float top-1 that the data's own notes state, percent, on all images.
        judged: whether the bars of the table count for this network.
    """

    name: str
    arch: str
    weights: str | None
    images: str
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: bool
    convolutions: int
    published_top1: float
    judged: bool = False

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the input at batch 1."""
        return (1, 3, self.size, self.size)

    @property
    def preprocessing(self) -> str:
        """Value of ``--preprocessing``."""
        mean, std = ("/".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        geometry = f",resize=256,crop={self.size}" if self.crop else ""
        return f"mean={mean},std={std}{geometry}"


_HALF = (0.5,)
_IMAGENET = "imagenet1k_sample"

CASES: Mapping[str, Case] = {
    case.name: case
    for case in (
        Case(
            name="efficientnet_lite0",
            arch="zoo:efficientnet_lite0",
            weights=None,
            images=_IMAGENET,
            size=224,
            mean=_HALF,
            std=_HALF,
            crop=True,
            convolutions=49,
            published_top1=87.0,
            judged=True,
        ),
        Case(
            name="cifar10_resnet20",
            arch="benchmarks.networks:cifar10_resnet20",
            weights="weights/cifar10_resnet20.pt",
            images="cifar10_test.npz",
            size=32,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            crop=False,
            convolutions=19,
            published_top1=81.0,
        ),
        Case(
            name="cifar10_resnet8",
            arch="benchmarks.networks:cifar10_resnet8",
            weights="weights/cifar10_resnet8.pt",
            images="cifar10_test.npz",
            size=32,
            mean=(0.0,),
            std=(1 / 255,),
            crop=False,
            convolutions=9,
            published_top1=75.24,
        ),
        Case(
            name="imagenet_mobilenetv1_075",
            arch="benchmarks.networks:mobilenetv1(width=0.75)",
            weights="weights/imagenet_mobilenetv1_075.pt",
            images=_IMAGENET,
            size=224,
            mean=_HALF,
            std=_HALF,
            crop=True,
            convolutions=27,
            published_top1=83.4,
        ),
    )
}


def find_data(names: list[str]) -> Path:
    """Return the data folder after checking that it has what the named networks need.

    Raises:
        DataError: there is no folder, or something is missing in it.
    """
    stated = os.environ.get(DATA_VARIABLE)
    folder = Path(stated) if stated else ROOT.parent / "shared" / "data"
    hint = f"set {DATA_VARIABLE} to the folder of the evaluation data (see benchmarks/README.md)"
    if not folder.is_dir():
        raise DataError(f"no evaluation data: '{folder}' is not a folder; {hint}")
    needed = {part for name in names for part in (CASES[name].images, CASES[name].weights) if part}
    missing = sorted(part for part in needed if not (folder / part).exists())
    if missing:
        raise DataError(f"'{folder}' lacks {', '.join(missing)}; {hint}")
    return folder.resolve()
