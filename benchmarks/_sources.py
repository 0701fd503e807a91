"""What a network gives: a checkpoint in torch, or an artifact in its own runtime."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from edgekit.errors import ConfigError
from edgekit.loading import load
from edgekit.manifest import read_manifest
from edgekit.preprocess import preprocess_batch
from edgekit.registry import RUNNERS
from edgekit.runners import open_artifact, open_model
from edgekit.runners.tensors import ArtifactRunner
from edgekit.training.class_images import ClassImages
from edgekit.types import Preprocessing

_AT_ONCE = 32


@dataclass(frozen=True)
class Source:
    """One network to be measured.

    Attributes:
        path: a checkpoint, or a directory that ``edgekit quantize`` wrote.
        target: of the directory; ``float`` is its float network. ``None`` for a checkpoint.
    """

    path: Path
    target: str | None

    @classmethod
    def parse(cls, text: str) -> Source:
        """Read ``FILE`` or ``DIRECTORY:TARGET``.

        Raises:
            ConfigError: neither is there.
        """
        path, colon, target = text.rpartition(":")
        if colon and Path(path).is_dir():
            return cls(Path(path), target)
        if Path(text).is_file():
            return cls(Path(text), None)
        raise ConfigError(f"'{text}' is neither a checkpoint nor DIRECTORY:TARGET")

    def side(self) -> int:
        """Return height and width of the pictures that it takes, pixels."""
        if self.target is None:
            return load(self.path).inputs[0].shape[2]
        return read_manifest(self.path).inputs[0].shape[2]

    def embed(self, images: ClassImages) -> np.ndarray:
        """Return the embeddings of all pictures, ``[N, C]`` float32."""
        return np.concatenate(list(self.outputs(_batches(images, self.preprocessing()))))

    def preprocessing(self) -> Preprocessing:
        """Return how pictures become inputs.

        Raises:
            ConfigError: nothing says so.
        """
        stated = load(self.path) if self.target is None else read_manifest(self.path)
        if stated.preprocessing is None:
            raise ConfigError(f"'{self.path}' does not say how pictures become inputs")
        return stated.preprocessing

    def outputs(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the first output for each batch of inputs."""
        if self.target is None:
            module = load(self.path).module
            with torch.no_grad():
                for batch in batches:
                    yield next(iter(module(torch.from_numpy(batch)).values())).numpy()
            return
        name = read_manifest(self.path).inputs[0].name
        with self._runner() as runner:
            for batch in batches:
                yield next(iter(runner.infer({name: batch}).values()))

    def reference(self) -> Source | None:
        """Return the float network of an artifact."""
        return None if self.target in (None, "float") else Source(self.path, "float")

    def _runner(self) -> ArtifactRunner:
        assert self.target is not None
        if self.target == "float":
            return open_model("onnxruntime", self.path / "float" / "model.onnx")
        if self.target in RUNNERS and self.target != "tensorrt":
            return open_artifact(self.path, self.target)
        # an engine needs its GPU: the same file with Q/DQ as arithmetic
        return open_model("tensorrt", self.path / self.target / "model.onnx", simulate=True)


def _batches(images: ClassImages, preprocessing: Preprocessing) -> list[np.ndarray]:
    starts = range(0, len(images), _AT_ONCE)
    return [
        preprocess_batch(
            list(images.pictures(range(k, min(k + _AT_ONCE, len(images))))), preprocessing
        )
        for k in starts
    ]


def parse_rows(texts: Sequence[str]) -> dict[str, list[Source]]:
    """Read ``NAME=SOURCE[,SOURCE]`` of each row.

    Raises:
        ConfigError: a row is written otherwise, or a source is not there.
    """
    rows: dict[str, list[Source]] = {}
    for text in texts:
        name, equals, sources = text.partition("=")
        if not (equals and name and sources) or name in rows:
            raise ConfigError(f"'{text}': expected NAME=SOURCE[,SOURCE], each name once")
        rows[name] = [Source.parse(part) for part in sources.split(",")]
    return rows
